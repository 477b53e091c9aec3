//! Windows of a calendar.

use std::time::Duration;

const DAY: i64 = 24 * 3600;

/// Which stretch of the calendar a window is. It begins at midnight UTC, unless an
/// [offset](Self::utc_offset) says otherwise.
///
/// # Defaults
///
/// - `utc_offset`: 0
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Calendar {
    unit: Unit,
    /// In minutes, east of Greenwich.
    utc_offset: i16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    Hour,
    Day,
    Week,
    Month,
}

/// A window of a [`Calendar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Later windows have higher numbers.
    pub(super) number: u64,
    /// Until the next one begins.
    pub(super) left: Duration,
}

impl Calendar {
    const fn of(unit: Unit) -> Self {
        Self {
            unit,
            utc_offset: 0,
        }
    }

    /// The hour.
    #[must_use]
    pub const fn hour() -> Self {
        Self::of(Unit::Hour)
    }

    /// The day.
    #[must_use]
    pub const fn day() -> Self {
        Self::of(Unit::Day)
    }

    /// The week, from Monday (ISO 8601).
    #[must_use]
    pub const fn week() -> Self {
        Self::of(Unit::Week)
    }

    /// The month.
    #[must_use]
    pub const fn month() -> Self {
        Self::of(Unit::Month)
    }

    /// Sets the time zone as minutes east of Greenwich, of which at most 18 hours count. Zones that
    /// change between summer and winter have no fixed offset and are not known here.
    #[must_use]
    pub const fn utc_offset(mut self, minutes: i16) -> Self {
        const MOST: i16 = 18 * 60;
        self.utc_offset = if minutes > MOST {
            MOST
        } else if minutes < -MOST {
            -MOST
        } else {
            minutes
        };
        self
    }

    /// What tells its windows from those of other units.
    pub(super) fn tag(self) -> u8 {
        match self.unit {
            Unit::Hour => 4,
            Unit::Day => 5,
            Unit::Week => 6,
            Unit::Month => 7,
        }
    }

    /// The unit as a number from 0, and the offset as seconds that are not negative.
    #[cfg(feature = "redis")]
    pub(super) fn as_numbers(self) -> (u64, u64) {
        const MOST: i64 = 18 * 3600;
        let offset = i64::from(self.utc_offset) * 60 + MOST;
        (u64::from(self.tag() - 4), offset as u64)
    }

    /// The usual length; of a month 30 days.
    pub(super) const fn nominal(self) -> Duration {
        let seconds = match self.unit {
            Unit::Hour => 3600,
            Unit::Day => DAY,
            Unit::Week => 7 * DAY,
            Unit::Month => 30 * DAY,
        };
        Duration::from_secs(seconds as u64)
    }

    /// The window at an instant, which is given as the time since 1970.
    pub(super) fn window(self, unix: Duration) -> Window {
        let local = unix.as_secs() as i64 + i64::from(self.utc_offset) * 60;
        let (number, end) = match self.unit {
            Unit::Hour => aligned(local, 3600),
            Unit::Day => aligned(local, DAY),
            Unit::Week => {
                // The first of January 1970 was a Thursday.
                let (number, end) = aligned(local + 3 * DAY, 7 * DAY);
                (number, end - 3 * DAY)
            }
            Unit::Month => {
                let month = month_of(local.div_euclid(DAY));
                (month, first_day(month + 1) * DAY)
            }
        };
        let left = Duration::from_secs((end - local) as u64);
        Window {
            // Offsets reach into 1969.
            number: number.max(0) as u64,
            left: left - Duration::from_nanos(u64::from(unix.subsec_nanos())),
        }
    }
}

fn aligned(local: i64, length: i64) -> (i64, i64) {
    let number = local.div_euclid(length);
    (number, (number + 1) * length)
}

/// The number of the month, from January of the year 0, that a day since 1970 is in.
/// By Howard Hinnant, "chrono-compatible low-level date algorithms".
fn month_of(day: i64) -> i64 {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Counted from March.
    let month = (5 * of_year + 2) / 153;
    (era * 400 + year) * 12 + month + 2
}

/// The first day of a month, since 1970.
fn first_day(month: i64) -> i64 {
    let from_march = month - 2;
    let year = from_march.div_euclid(12);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * from_march.rem_euclid(12) + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    const NOON: i64 = DAY / 2;

    /// Noon of a day since 1970.
    fn noon(day: i64) -> Duration {
        Duration::from_secs((day * DAY + NOON) as u64)
    }

    #[test]
    fn months_have_the_lengths_that_they_have() {
        let mut day = 0;
        for year in 1970..2200_i64 {
            let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
            let february = if is_leap { 29 } else { 28 };
            let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (month, length) in lengths.into_iter().enumerate() {
                for of_month in 0..length {
                    let window = Calendar::month().window(noon(day));
                    assert_eq!(window.number, year as u64 * 12 + month as u64, "day {day}");
                    let left = (length - of_month) * DAY - NOON;
                    assert_eq!(window.left, Duration::from_secs(left as u64), "day {day}");
                    day += 1;
                }
            }
        }
    }

    #[test]
    fn weeks_begin_on_monday_and_days_at_local_midnight() {
        // 2026-11-20, a Friday, 09:00:00.25 UTC.
        let unix = Duration::from_millis(1_795_165_200_250);
        let hours = |hours: f64| Duration::from_secs_f64(hours * 3600.0);
        let quarter = Duration::from_millis(250);
        assert_eq!(Calendar::hour().window(unix).left, hours(1.0) - quarter);
        assert_eq!(Calendar::day().window(unix).left, hours(15.0) - quarter);
        assert_eq!(Calendar::week().window(unix).left, hours(63.0) - quarter);
        let india = Calendar::day().utc_offset(330);
        assert_eq!(india.window(unix).left, hours(9.5) - quarter);
        let number = |calendar: Calendar| calendar.window(unix + hours(10.0)).number;
        assert_eq!(number(india), number(Calendar::day()) + 1);
        let early = Calendar::day().utc_offset(-60).window(Duration::ZERO);
        assert_eq!((early.number, early.left), (0, hours(1.0)));
    }
}
