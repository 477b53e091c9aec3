//! The values that a file is made of.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, time::Duration};

use super::{
    near::nearest,
    read::{Mistakes, Value, did_you_mean},
};

/// The longest duration: far beyond any use, and far below where adding it to a clock overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The most words that a message lists: a file may name thousands of clusters.
const LISTED: usize = 20;

/// A text that is not empty, quoted or not.
pub(crate) fn text(value: &Value<'_>) -> Result<String, Mistakes> {
    match value.scalar() {
        Some((text, _)) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(value.expected("a text")),
    }
}

/// `true` or `false`.
pub(crate) fn boolean(value: &Value<'_>) -> Result<bool, Mistakes> {
    match value.scalar() {
        Some(("true", true)) => Ok(true),
        Some(("false", true)) => Ok(false),
        _ => Err(value.expected("true or false")),
    }
}

/// A reader of whole numbers in a range: `number(1..=65535_u16)`.
pub(crate) fn number<N>(
    range: RangeInclusive<N>,
) -> impl FnOnce(&Value<'_>) -> Result<N, Mistakes> + Clone
where
    N: std::str::FromStr + PartialOrd + fmt::Display + Clone,
{
    move |value| {
        value
            .scalar()
            .filter(|(text, plain)| *plain && is_digits(text))
            .and_then(|(text, _)| text.parse().ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (low, high) = (range.start(), range.end());
                value.expected(format_args!("a number from {low} to {high}"))
            })
    }
}

/// `250ms`, `30s`, `5m` or `1h`.
pub(crate) fn duration(value: &Value<'_>) -> Result<Duration, Mistakes> {
    let expected = "a duration such as 250ms, 30s, 5m or 1h";
    let Some((number, unit)) = value.scalar().and_then(|(text, _)| with_unit(text)) else {
        return Err(value.expected(expected));
    };
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(value.expected(expected)),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| value.expected("a duration of at most 8760h"))
}

/// A duration that is not zero.
pub(crate) fn positive_duration(value: &Value<'_>) -> Result<Duration, Mistakes> {
    let duration = duration(value)?;
    if duration.is_zero() {
        return Err(value.expected("a duration longer than zero"));
    }
    Ok(duration)
}

/// A number such as `2` or `1.25`; `None` when it is none. What may be expected differs.
pub(crate) fn decimal(value: &Value<'_>) -> Option<f64> {
    let (text, _) = value.scalar().filter(|(_, plain)| *plain)?;
    parse_decimal(text)
}

fn parse_decimal(text: &str) -> Option<f64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_decimal = is_digits(whole) && is_digits(part);
    is_decimal.then(|| text.parse().ok()).flatten()
}

/// How many in what time: `10/s`, `600/m`, `5000/h` or `10000/d`; `None` when it is no rate. What
/// may be expected differs.
pub(crate) fn rate(value: &Value<'_>) -> Option<(u32, Duration)> {
    let (count, unit) = value.scalar()?.0.split_once('/')?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    let count = is_digits(count).then(|| count.parse().ok()).flatten()?;
    Some((count, Duration::from_secs(seconds)))
}

/// Bytes: `512`, `64KiB`, `1MiB` or `2GiB`.
pub(crate) fn size(value: &Value<'_>) -> Result<usize, Mistakes> {
    let expected = "a size such as 512, 64KiB, 1MiB or 2GiB";
    let Some((number, unit)) = value.scalar().and_then(|(text, _)| with_unit(text)) else {
        return Err(value.expected(expected));
    };
    let bytes = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(value.expected(expected)),
    };
    number
        .checked_mul(bytes)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| value.expected("a size that fits the memory"))
}

/// `50%` or `0.5%`, as 50.0 or 0.5.
pub(crate) fn percent(value: &Value<'_>) -> Result<f64, Mistakes> {
    value
        .scalar()
        .and_then(|(text, _)| text.strip_suffix('%'))
        .and_then(parse_decimal)
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| value.expected("a percentage such as 50%, from 0% to 100%"))
}

/// An IP address and a port; port 0 asks for a free one.
pub(crate) fn socket_addr(value: &Value<'_>) -> Result<SocketAddr, Mistakes> {
    value
        .scalar()
        .and_then(|(text, _)| text.parse().ok())
        .ok_or_else(|| {
            value.expected("an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080")
        })
}

/// A reader of one of these words, as what it stands for.
pub(crate) fn one_of<'w, T: Copy>(
    words: &'w [(&'w str, T)],
) -> impl FnOnce(&Value<'_>) -> Result<T, Mistakes> + Clone + 'w {
    move |value| {
        let word = value.scalar().map_or("", |(text, _)| text);
        if let Some((_, meant)) = words.iter().find(|(known, _)| *known == word) {
            return Ok(*meant);
        }
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        let hint = did_you_mean(nearest(word, known.iter().copied()));
        Err(value.wrong(format!(
            "expected one of {}, found {}{hint}",
            list(&known),
            value.found()
        )))
    }
}

/// As many of the words as a reader takes in.
fn list(words: &[&str]) -> String {
    let (named, more) = words.split_at(words.len().min(LISTED));
    let named = named.join(", ");
    if more.is_empty() {
        return named;
    }
    format!("{named} and {} more", more.len())
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Splits `30s` into 30 and `s`. A number beyond u64 is as wrong as none.
fn with_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::{super::document::parse, *};

    fn read<T>(
        reader: impl FnOnce(&Value<'_>) -> Result<T, Mistakes>,
        file: &str,
    ) -> Result<T, String> {
        let tree = parse(file).unwrap();
        reader(&Value::root(&tree)).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn texts() {
        for (file, value) in [
            ("a b", "a b"),
            ("'5'", "5"),
            ("1.0", "1.0"),
            ("true", "true"),
        ] {
            assert_eq!(read(text, file), Ok(value.into()));
        }
        for (file, found) in [
            ("''", "the quoted \"\""),
            ("~", "nothing"),
            ("{}", "a mapping"),
        ] {
            let message = format!("line 1: expected a text, found {found}");
            assert_eq!(read(text, file), Err(message));
        }
    }

    #[test]
    fn booleans() {
        assert_eq!(read(boolean, "true"), Ok(true));
        assert_eq!(read(boolean, "false"), Ok(false));
        for (file, found) in [
            ("yes", "\"yes\""),
            ("True", "\"True\""),
            ("\"true\"", "the quoted \"true\""),
            ("1", "\"1\""),
        ] {
            let message = format!("line 1: expected true or false, found {found}");
            assert_eq!(read(boolean, file), Err(message));
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(read(number(0..=u16::MAX), "65535"), Ok(65535));
        assert_eq!(read(number(0..=u32::MAX), "0"), Ok(0));
        assert_eq!(read(number(1..=usize::MAX), "12"), Ok(12));
        for file in [
            "65536",
            "-1",
            "+1",
            "1.0",
            "0x10",
            "1_000",
            "99999999999999999999",
            "one",
        ] {
            let message = format!("line 1: expected a number from 0 to 65535, found {file:?}");
            assert_eq!(read(number(0..=u16::MAX), file), Err(message));
        }
        assert_eq!(
            read(number(1..=8_u32), "0"),
            Err("line 1: expected a number from 1 to 8, found \"0\"".into())
        );
        assert_eq!(
            read(number(1..=8_u32), "'5'"),
            Err("line 1: expected a number from 1 to 8, found the quoted \"5\"".into())
        );
    }

    #[test]
    fn durations() {
        for (file, milliseconds) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("'10s'", 10_000),
            ("8760h", 31_536_000_000),
        ] {
            let duration = read(duration, file).unwrap();
            assert_eq!(duration, Duration::from_millis(milliseconds), "{file}");
        }
        for file in [
            "10",
            "1.5s",
            "10 s",
            "s",
            "10S",
            "1d",
            "-1s",
            "1m30s",
            "99999999999999999999s",
        ] {
            let message =
                format!("line 1: expected a duration such as 250ms, 30s, 5m or 1h, found {file:?}");
            assert_eq!(read(duration, file), Err(message));
        }
        for file in ["8761h", "18446744073709551615h"] {
            let message = format!("line 1: expected a duration of at most 8760h, found {file:?}");
            assert_eq!(read(duration, file), Err(message));
        }
        assert_eq!(
            read(positive_duration, "0ms"),
            Err("line 1: expected a duration longer than zero, found \"0ms\"".into())
        );
    }

    #[test]
    fn sizes() {
        for (file, bytes) in [
            ("512", 512),
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(read(size, file), Ok(bytes));
        }
        for file in ["64KB", "64kib", "1.5MiB", "MiB", "-1", "1 MiB"] {
            let message =
                format!("line 1: expected a size such as 512, 64KiB, 1MiB or 2GiB, found {file:?}");
            assert_eq!(read(size, file), Err(message));
        }
        assert_eq!(
            read(size, "18446744073709551615KiB"),
            Err(
                "line 1: expected a size that fits the memory, found \"18446744073709551615KiB\""
                    .into()
            )
        );
    }

    #[test]
    fn percentages() {
        for (file, value) in [("50%", 50.0), ("0.5%", 0.5), ("0%", 0.0), ("100%", 100.0)] {
            assert_eq!(read(percent, file), Ok(value));
        }
        for file in [
            "50", "101%", "-1%", "100.1%", "1e1%", "nan%", "inf%", ".5%", "5.%",
        ] {
            let message = format!(
                "line 1: expected a percentage such as 50%, from 0% to 100%, found {file:?}"
            );
            assert_eq!(read(percent, file), Err(message));
        }
    }

    #[test]
    fn socket_addresses() {
        for file in ["127.0.0.1:0", "'[::1]:8080'"] {
            assert!(read(socket_addr, file).is_ok());
        }
        for file in ["localhost:80", "127.0.0.1", ":80", "127.0.0.1:99999"] {
            let message = format!(
                "line 1: expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, \
                 found {file:?}"
            );
            assert_eq!(read(socket_addr, file), Err(message));
        }
    }

    #[test]
    fn words() {
        let protocol = one_of(&[("http1", 1), ("h2", 2)]);
        assert_eq!(read(protocol.clone(), "h2"), Ok(2));
        assert_eq!(
            read(protocol.clone(), "foo"),
            Err("line 1: expected one of http1, h2, found \"foo\"".into())
        );
        assert_eq!(
            read(protocol.clone(), "HTTP-1"),
            Err(
                "line 1: expected one of http1, h2, found \"HTTP-1\"; did you mean \"http1\"?"
                    .into()
            )
        );
        assert_eq!(
            read(protocol, "[h2]"),
            Err("line 1: expected one of http1, h2, found a list".into())
        );

        let many: Vec<String> = (0..30).map(|i| format!("word{i}")).collect();
        let many: Vec<(&str, ())> = many.iter().map(|word| (word.as_str(), ())).collect();
        let message = read(one_of(&many), "x").unwrap_err();
        assert!(
            message.ends_with("word18, word19 and 10 more, found \"x\""),
            "{message}"
        );
    }
}
