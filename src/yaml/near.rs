//! The word that was probably meant.

/// The one of `words` that is a slip of the finger away from `word`.
pub(super) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long texts are no typing mistakes, and the distance is quadratic.
    if word.len() > 64 {
        return None;
    }
    words
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        // One slip in every three letters: `prot` is not `path`.
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        // Who writes `http2` does not mean `http1`.
        .filter(|(distance, candidate)| *distance == 0 || !differ_in_digits(word, candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Whether the words are the same but for the values of their digits.
fn differ_in_digits(one: &str, other: &str) -> bool {
    let fits =
        |(a, b): (u8, u8)| a.eq_ignore_ascii_case(&b) || (a.is_ascii_digit() && b.is_ascii_digit());
    one.len() == other.len() && one.bytes().zip(other.bytes()).all(fits)
}

/// The edits from one word to the other (Levenshtein); case and the choice of `-`, `_` or `.` are
/// free.
fn distance(from: &str, to: &str) -> usize {
    let fold = |c: char| match c.to_ascii_lowercase() {
        '-' | '.' | ' ' => '_',
        c => c,
    };
    let to: Vec<char> = to.chars().map(fold).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().map(fold).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_edits() {
        for (from, to, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("Round-Robin", "round_robin", 0),
        ] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
        }
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        let words = ["balance", "protocol", "path", "tls", "http1"];
        for (word, meant) in [
            ("balence", Some("balance")),
            ("Protocoll", Some("protocol")),
            ("paht", None),
            ("pth", Some("path")),
            ("tlss", Some("tls")),
            ("health", None),
            ("http2", None),
            ("HTTP1", Some("http1")),
            ("htp1", Some("http1")),
            ("", None),
        ] {
            assert_eq!(nearest(word, words), meant, "{word}");
        }
    }
}
