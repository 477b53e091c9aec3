//! Draws by weight in constant time: Vose's alias method (M. D. Vose, "A linear algorithm for
//! generating random numbers with a given distribution", 1991).

use super::scale;

/// A table to draw from `0..len` by weight.
#[derive(Debug)]
pub(super) struct Alias(Box<[Column]>);

impl Alias {
    pub(super) fn new(weights: &[f64]) -> Self {
        Self(alias_table(weights))
    }

    /// `None` when there is nothing to draw.
    pub(super) fn draw(&self, entropy: u64) -> Option<usize> {
        let index = scale(entropy, self.0.len());
        let column = self.0.get(index)?;
        // The high bits chose the column; the low ones are still free.
        let drawn = entropy as u32;
        Some(if drawn < column.threshold {
            index
        } else {
            column.alias as usize
        })
    }
}

/// A column of the table: its own index below the threshold, the alias above.
#[derive(Clone, Copy, Debug)]
struct Column {
    threshold: u32,
    alias: u32,
}

fn alias_table(weights: &[f64]) -> Box<[Column]> {
    // In whole numbers, so that no rounding leaves a column half filled.
    let max = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let whole = |weight: &f64| (weight / max * f64::from(u32::MAX)).round() as u64;
    let mut fill: Vec<u64> = weights.iter().map(whole).collect();
    let total: u64 = fill.iter().sum();
    // Each column holds `total`; a weight fills `weight * count` of it.
    let count = weights.len() as u64;
    fill.iter_mut().for_each(|weight| *weight *= count);
    let mut columns: Box<[Column]> = (0..weights.len() as u32)
        .map(|index| Column {
            threshold: u32::MAX,
            alias: index,
        })
        .collect();
    let (mut under, mut over): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|index| fill[*index] < total);
    while let (Some(small), Some(large)) = (under.pop(), over.last().copied()) {
        let share = u128::from(fill[small]) * u128::from(u32::MAX) / u128::from(total.max(1));
        columns[small] = Column {
            threshold: share as u32,
            alias: large as u32,
        };
        fill[large] -= total - fill[small];
        if fill[large] < total {
            over.pop();
            under.push(large);
        }
    }
    columns
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_table_holds_every_weight(
            weights in proptest::collection::vec(0_u32..10_000, 1..40),
        ) {
            let total: u64 = weights.iter().copied().map(u64::from).sum();
            prop_assume!(total > 0);
            let table: Vec<_> = weights.iter().copied().map(f64::from).collect();
            let columns = alias_table(&table);
            let mut share = vec![0.0; weights.len()];
            for (index, column) in columns.iter().enumerate() {
                let own = f64::from(column.threshold) / f64::from(u32::MAX);
                share[index] += own;
                share[column.alias as usize] += 1.0 - own;
            }
            for (share, weight) in share.iter().zip(&weights) {
                let expected = f64::from(*weight) / total as f64 * weights.len() as f64;
                prop_assert!((share - expected).abs() < 1e-6, "{} {}", share, expected);
            }
        }
    }
}
