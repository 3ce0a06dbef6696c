//! `strftime` in UTC, for chat templates that print the date.

use std::fmt::Write;

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats a moment (Unix seconds). Directives it does not know stay as they are, as in C.
pub(crate) fn strftime(format: &str, now: u64) -> String {
    let moment = Moment::of(now);
    let mut text = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let unpadded = chars.next_if_eq(&'-').is_some();
        match chars.next() {
            Some(directive) => moment.write(directive, unpadded, &mut text),
            None => text.push('%'),
        }
    }
    text
}

/// A moment of the proleptic Gregorian calendar.
struct Moment {
    year: u64,
    /// From 0.
    month: usize,
    day: u64,
    weekday: usize,
    day_of_year: u64,
    second_of_day: u64,
}

impl Moment {
    fn of(now: u64) -> Self {
        let days = now / 86_400;
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let year_days = |year| if leap(year) { 366 } else { 365 };
        // Whole cycles of 400 years first, so that the search below is short for any number.
        let mut year = 1970 + days / 146_097 * 400;
        let mut rest = days % 146_097;
        while rest >= year_days(year) {
            rest -= year_days(year);
            year += 1;
        }
        let day_of_year = rest + 1;
        let february = if leap(year) { 29 } else { 28 };
        let mut month = 0;
        for month_days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if rest < month_days {
                break;
            }
            rest -= month_days;
            month += 1;
        }
        let weekday = ((days + 4) % 7) as usize; // 1 January 1970 was a Thursday
        Self { year, month, day: rest + 1, weekday, day_of_year, second_of_day: now % 86_400 }
    }

    fn write(&self, directive: char, unpadded: bool, text: &mut String) {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let half_day_hour = (hour + 11) % 12 + 1;
        let mut number = |value: u64, width: usize| {
            let width = if unpadded { 0 } else { width };
            // Writing to a String cannot fail.
            let _ = write!(text, "{value:0width$}");
        };
        match directive {
            'Y' => number(self.year, 4),
            'y' => number(self.year % 100, 2),
            'm' => number(self.month as u64 + 1, 2),
            'd' => number(self.day, 2),
            'j' => number(self.day_of_year, 3),
            'H' => number(hour, 2),
            'I' => number(half_day_hour, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'e' => {
                let _ = write!(text, "{:>2}", self.day);
            }
            'B' => text.push_str(MONTHS[self.month]),
            'b' => text.push_str(&MONTHS[self.month][..3]),
            'A' => text.push_str(DAYS[self.weekday]),
            'a' => text.push_str(&DAYS[self.weekday][..3]),
            'p' => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => text.push_str(&strftime_at(self, "%Y-%m-%d")),
            'T' => text.push_str(&strftime_at(self, "%H:%M:%S")),
            'Z' => text.push_str("UTC"),
            'z' => text.push_str("+0000"),
            '%' => text.push('%'),
            other => text.extend(['%', other]),
        }
    }
}

/// Expands a directive that stands for others.
fn strftime_at(moment: &Moment, format: &str) -> String {
    let mut text = String::new();
    for (i, part) in format.split('%').enumerate() {
        let mut chars = part.chars();
        if i > 0
            && let Some(directive) = chars.next()
        {
            moment.write(directive, false, &mut text);
        }
        text.push_str(chars.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates() {
        // 29 February 2024, 13:05:09 UTC, a Thursday.
        let now = 1_709_211_909;
        assert_eq!(strftime("%d %b %Y", now), "29 Feb 2024");
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S", now), "2024-02-29 13:05:09");
        assert_eq!(
            strftime("%A, %B %-d, %I:%M %p, day %j, 100%%", now),
            "Thursday, February 29, 01:05 PM, day 060, 100%"
        );
        assert_eq!(strftime("%F %T %a %y %q %", now), "2024-02-29 13:05:09 Thu 24 %q %");
        assert_eq!(strftime("%F %a", 0), "1970-01-01 Thu");
        assert_eq!(strftime("%F %a", 951_868_799), "2000-02-29 Tue");
        assert_eq!(strftime("%F %a", 4_107_542_400), "2100-03-01 Mon");
        assert_eq!(strftime("%F", 1_735_689_599), "2024-12-31");
    }
}
