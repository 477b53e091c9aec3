//! How many are under way at the same time.

use super::{
    cell::{Cell, Outcome, Reading},
    quota::Quota,
};

/// When a slot comes free is not known: what is told is when it is no nuisance to ask again.
const AGAIN: u64 = 1_000_000_000;

/// Takes the slots, where they are free.
pub(super) fn take(cell: &mut Cell, quota: &Quota, cost: u32) -> Reading {
    let free = u64::from(quota.capacity()).saturating_sub(cell.count);
    let reading = |outcome, free: u64| Reading {
        outcome,
        remaining: free as u32,
        reset: 0,
    };
    if cost > quota.capacity() {
        return reading(Outcome::Never, free);
    }
    match free.checked_sub(u64::from(cost)) {
        Some(free) => {
            owe(cell, cost);
            reading(Outcome::Admit, free)
        }
        None if cost == 0 => reading(Outcome::Admit, free),
        None => reading(Outcome::Deny { after: AGAIN }, free),
    }
}

/// Gives slots back.
pub(super) fn refund(cell: &mut Cell, cost: u32) {
    write(cell, cell.count.saturating_sub(u64::from(cost)));
}

/// Takes slots that are in use already.
pub(super) fn owe(cell: &mut Cell, cost: u32) {
    write(cell, cell.count + u64::from(cost));
}

fn write(cell: &mut Cell, count: u64) {
    cell.count = count;
    cell.until = if count == 0 { 0 } else { u64::MAX };
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_and_given_back() {
        let quota = Quota::concurrent(3);
        let mut cell = Cell::default();
        let taken = |cell: &mut Cell, cost| {
            let reading = take(cell, &quota, cost);
            (reading.outcome, reading.remaining)
        };
        assert_eq!(taken(&mut cell, 2), (Outcome::Admit, 1));
        assert_eq!(taken(&mut cell, 2), (Outcome::Deny { after: AGAIN }, 1));
        assert_eq!(taken(&mut cell, 4), (Outcome::Never, 1));
        assert!(!cell.is_idle(u64::MAX - 1));
        refund(&mut cell, 1);
        assert_eq!(taken(&mut cell, 2), (Outcome::Admit, 0));
        refund(&mut cell, 9);
        assert_eq!(taken(&mut cell, 0), (Outcome::Admit, 3));
        assert!(cell.is_idle(0));
    }
}
