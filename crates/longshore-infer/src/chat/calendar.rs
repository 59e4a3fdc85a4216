//! The date that `strftime_now` writes, as Python's `datetime.strftime` does in the C locale. Not a time library.
//!
//! Days and dates are turned into each other in the proleptic Gregorian calendar, counting years from March so that the
//! leap day is a year's last.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment: date and time of day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) year: i64,
    /// From 1.
    pub(super) month: u32,
    /// From 1.
    pub(super) day: u32,
    /// Seconds since midnight.
    pub(super) seconds: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Days in 400 years.
const ERA: i64 = 146_097;

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;

impl Moment {
    pub(super) fn now() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::from_unix(i64::try_from(seconds).unwrap_or(0))
    }

    fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400) + EPOCH;
        let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        // A century's and a 4-year cycle's last day would else begin another year.
        let years = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
        let of_year = of_era - (365 * years + years / 4 - years / 100);
        // From March on, five months have 153 days.
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = era * 400 + years + i64::from(month <= 2);
        let small = |n: i64| u32::try_from(n).expect("remainders are small and not negative");
        Self { year, month: small(month), day: small(day), seconds: small(seconds.rem_euclid(86_400)) }
    }

    /// Days since 1970-01-01.
    fn days(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let (era, years) = (year.div_euclid(400), year.rem_euclid(400));
        let from_march = (i64::from(self.month) + 9) % 12;
        let of_year = (153 * from_march + 2) / 5 + i64::from(self.day) - 1;
        era * ERA + years * 365 + years / 4 - years / 100 + of_year - EPOCH
    }

    /// 0 for Sunday.
    fn weekday(self) -> usize {
        usize::try_from((self.days() + 4).rem_euclid(7)).unwrap_or(0)
    }

    /// From 1.
    fn day_of_year(self) -> i64 {
        self.days() - Self { month: 1, day: 1, ..self }.days() + 1
    }

    /// Python's `strftime`. A directive it does not know is left as it stands, as the C library does.
    pub(super) fn format(self, format: &str) -> String {
        let mut text = String::with_capacity(format.len());
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let unpadded = chars.next_if_eq(&'-').is_some();
            match chars.next() {
                Some(directive) => self.directive(directive, unpadded, &mut text),
                None => text.push_str(if unpadded { "%-" } else { "%" }),
            }
        }
        text
    }

    fn directive(self, directive: char, unpadded: bool, text: &mut String) {
        let month = MONTHS[(self.month as usize).clamp(1, 12) - 1];
        let weekday = WEEKDAYS[self.weekday()];
        let (hour, minute, second) = (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let padded = |n: i64, width: usize| if unpadded { n.to_string() } else { format!("{n:0width$}") };
        let two = |n: u32| padded(i64::from(n), 2);
        let piece = match directive {
            'd' => two(self.day),
            'e' => {
                if unpadded {
                    self.day.to_string()
                } else {
                    format!("{:2}", self.day)
                }
            }
            'm' => two(self.month),
            'y' => padded(self.year.rem_euclid(100), 2),
            'Y' => self.year.to_string(),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'j' => padded(self.day_of_year(), 3),
            'w' => self.weekday().to_string(),
            'u' => ((self.weekday() + 6) % 7 + 1).to_string(),
            'H' => two(hour),
            'I' => two(hour12),
            'M' => two(minute),
            'S' => two(second),
            'f' => "000000".to_owned(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => self.format("%Y-%m-%d"),
            'T' | 'X' => self.format("%H:%M:%S"),
            'R' => self.format("%H:%M"),
            'D' | 'x' => self.format("%m/%d/%y"),
            'c' => self.format("%a %b %e %H:%M:%S %Y"),
            // `datetime.now()` knows no zone.
            'z' | 'Z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => {
                let _ = write!(text, "%{}{other}", if unpadded { "-" } else { "" });
                return;
            }
        };
        text.push_str(&piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(year: i64, month: u32, day: u32, seconds: u32) -> Moment {
        Moment { year, month, day, seconds }
    }

    #[test]
    fn days_and_dates_agree_over_four_centuries() {
        let mut previous = Moment::from_unix(-86_400);
        assert_eq!(previous, at(1969, 12, 31, 0));
        for day in 0..ERA {
            let moment = Moment::from_unix(day * 86_400);
            assert_eq!(moment.days(), day);
            let next_day = moment.day == previous.day + 1 && moment.month == previous.month;
            let next_month = moment.day == 1 && previous.day >= 28 && moment.month == previous.month % 12 + 1;
            assert!(next_day || next_month, "{previous:?} {moment:?}");
            previous = moment;
        }
        assert_eq!(Moment::from_unix(951_782_400 + 5), at(2000, 2, 29, 5));
        assert_eq!(Moment::from_unix(1_795_305_600), at(2026, 11, 22, 0));
    }

    #[test]
    fn every_directive_is_as_python_writes_it() {
        // Python 3.12: datetime(2024, 3, 5, 14, 7, 9).strftime(...).
        let moment = at(2024, 3, 5, 14 * 3600 + 7 * 60 + 9);
        let all = "%d %e %m %y %Y %B %b %h %A %a %j %w %u %H %I %M %S %p %F %T %R %D %% %-d %-m %-I %c|%x|%X|%Z|";
        let expected = "05  5 03 24 2024 March Mar Mar Tuesday Tue 065 2 2 14 02 07 09 PM 2024-03-05 14:07:09 14:07 \
                        03/05/24 % 5 3 2 Tue Mar  5 14:07:09 2024|03/05/24|14:07:09||";
        assert_eq!(moment.format(all), expected);
        assert_eq!(at(2024, 1, 1, 0).format("%I %p %Q %"), "12 AM %Q %");
    }
}
