//! Dates of HTTP (RFC 9110 section 5.6.7): three forms are read, one is written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// From the day of the epoch, a Thursday.
const WEEKDAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// The time that a field names. Names of days, months and the zone are read in any case, as other
/// caches do; all else is as the grammar wants it.
///
/// The two digits of an RFC 850 year mean the one that is at most 50 years ahead of `now`.
pub(crate) fn parse(value: &HeaderValue, now: SystemTime) -> Option<SystemTime> {
    let text = value.to_str().ok()?;
    let fields = match text.split_once(", ") {
        Some((weekday, rest)) if weekday.len() == 3 => imf(weekday, rest),
        Some((weekday, rest)) => rfc850(weekday, rest, now),
        None => asctime(text),
    };
    fields?.time()
}

/// The time as an IMF-fixdate, in whole seconds. Times before the epoch are the epoch.
pub(crate) fn format(time: SystemTime) -> HeaderValue {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    let text = format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        &WEEKDAYS[days as usize % 7][..3],
        MONTHS[month as usize - 1],
        second / 3600,
        second / 60 % 60,
        second % 60,
    );
    HeaderValue::try_from(text).expect("a date is visible ASCII")
}

struct Fields {
    year: u32,
    month: u32,
    day: u32,
    second: u32,
}

impl Fields {
    fn time(&self) -> Option<SystemTime> {
        let days = days(self.year, self.month, self.day);
        // A day that the month does not have would be one of the next.
        if civil(days) != (i64::from(self.year), self.month, self.day) {
            return None;
        }
        let seconds = days * 86_400 + i64::from(self.second);
        let distance = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            UNIX_EPOCH.checked_sub(distance)
        } else {
            UNIX_EPOCH.checked_add(distance)
        }
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf(weekday: &str, rest: &str) -> Option<Fields> {
    known_weekday(weekday, 3)?;
    let [day, month, year, time, zone] = parts(rest, b' ')?;
    greenwich(zone)?;
    Some(Fields {
        year: number(year, 4)?,
        month: month_number(month)?,
        day: number(day, 2)?,
        second: second_of_day(time)?,
    })
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(weekday: &str, rest: &str, now: SystemTime) -> Option<Fields> {
    known_weekday(weekday, usize::MAX)?;
    let [date, time, zone] = parts(rest, b' ')?;
    let [day, month, year] = parts(date, b'-')?;
    greenwich(zone)?;
    let today = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / 86_400);
    let this_year = u32::try_from(civil(today as i64).0).ok()?;
    let mut year = this_year / 100 * 100 + number(year, 2)?;
    if year > this_year + 50 {
        year -= 100;
    } else if year + 50 <= this_year {
        year += 100;
    }
    Some(Fields {
        year,
        month: month_number(month)?,
        day: number(day, 2)?,
        second: second_of_day(time)?,
    })
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<Fields> {
    let (weekday, rest) = text.split_once(' ')?;
    known_weekday(weekday, 3)?;
    let (month, rest) = rest.split_once(' ')?;
    let (day, rest) = rest.split_at_checked(2)?;
    let [time, year] = parts(rest.strip_prefix(' ')?, b' ')?;
    let day = match day.strip_prefix(' ') {
        Some(digit) => number(digit, 1)?,
        None => number(day, 2)?,
    };
    Some(Fields {
        year: number(year, 4)?,
        month: month_number(month)?,
        day,
        second: second_of_day(time)?,
    })
}

fn parts<const N: usize>(text: &str, separator: u8) -> Option<[&str; N]> {
    let mut parts = text.split(char::from(separator));
    let mut found = [""; N];
    for part in &mut found {
        *part = parts.next()?;
    }
    parts.next().is_none().then_some(found)
}

fn known_weekday(text: &str, length: usize) -> Option<()> {
    let known = |day: &&str| day[..length.min(day.len())].eq_ignore_ascii_case(text);
    WEEKDAYS.iter().any(known).then_some(())
}

fn greenwich(zone: &str) -> Option<()> {
    zone.eq_ignore_ascii_case("GMT").then_some(())
}

fn month_number(text: &str) -> Option<u32> {
    let position = MONTHS
        .iter()
        .position(|month| month.eq_ignore_ascii_case(text))?;
    Some(position as u32 + 1)
}

fn second_of_day(text: &str) -> Option<u32> {
    let [hour, minute, second] = parts(text, b':')?;
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    // 60 is a leap second.
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

fn number(text: &str, digits: usize) -> Option<u32> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Days since the epoch (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days(year: u32, month: u32, day: u32) -> i64 {
    let (month, day) = (i64::from(month), i64::from(day));
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of a day since the epoch; the inverse of [`days`].
fn civil(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted + 2) / 5 + 1) as u32;
    let month = ((shifted + 2) % 12 + 1) as u32;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Thu, 01 Jan 2026 00:00:00 GMT
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn seconds(text: &str) -> Option<i64> {
        let time = parse(&HeaderValue::from_str(text).unwrap(), now())?;
        Some(match time.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs() as i64,
            Err(before) => -(before.duration().as_secs() as i64),
        })
    }

    #[test]
    fn three_forms_are_read_in_any_case() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "SUN, 06 NOV 1994 08:49:37 gmt",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(seconds(text), Some(784_111_777), "{text}");
        }
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds("Wed, 31 Dec 1969 23:59:59 GMT"), Some(-1));
        assert_eq!(
            seconds("Sat, 29 Feb 2020 00:00:00 GMT"),
            Some(1_582_934_400)
        );
    }

    #[test]
    fn two_digits_are_the_nearest_year() {
        let year = |text: &str| seconds(text).unwrap() / 31_556_952 + 1970;
        assert_eq!(year("Thursday, 18-Aug-50 02:01:18 GMT"), 2050);
        assert_eq!(year("Thursday, 18-Aug-76 02:01:18 GMT"), 2076);
        assert_eq!(year("Thursday, 18-Aug-77 02:01:18 GMT"), 1977);
    }

    #[test]
    fn anything_else_is_no_date() {
        for text in [
            "0",
            "",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 30 Feb 2050 02:01:18 GMT",
            "Thu, 00 Feb 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 24:01:18 GMT",
            "Xyz, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 GMT, Thu, 18 Aug 2050 02:01:19 GMT",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0..253_402_300_800_u64) {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(parse(&format(time), now()), Some(time));
        }

        #[test]
        fn no_text_panics(text in "[ -~]{0,40}") {
            let value = HeaderValue::from_str(&text).unwrap();
            parse(&value, now());
        }
    }
}
