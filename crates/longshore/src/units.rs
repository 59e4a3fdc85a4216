//! Numbers as people read and write them: decimal multiples of bytes (as disks and networks count), grouped digits.

const UNITS: [(&str, u64); 12] = [
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    // As Slurm's --mem counts.
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

/// `6243` as `6,243`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `n things`, or `1 thing`.
pub(crate) fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `63_200_000_000` as `63.2 GB`.
pub(crate) fn bytes(n: u64) -> String {
    for (unit, size) in &UNITS[..4] {
        if n >= *size {
            return format!("{:.1} {unit}", n as f64 / *size as f64);
        }
    }
    format!("{n} B")
}

/// Done and total in the unit of the total: `38.1/63.2 GB`.
pub(crate) fn bytes_of(done: u64, total: u64) -> String {
    for (unit, size) in &UNITS[..4] {
        if total >= *size {
            return format!("{:.1}/{:.1} {unit}", done as f64 / *size as f64, total as f64 / *size as f64);
        }
    }
    format!("{done}/{total} B")
}

/// Bytes in seconds as `3.4 GB/s`.
pub(crate) fn rate(n: u64, seconds: f64) -> String {
    #[expect(clippy::cast_sign_loss, reason = "neither is negative, and `as` saturates")]
    let per_second = (n as f64 / seconds.max(1e-3)) as u64;
    format!("{}/s", bytes(per_second))
}

/// Seconds as `0.4s`, `18.6s`, `3m 07s` or `2h 05m`.
pub(crate) fn seconds(s: f64) -> String {
    #[expect(clippy::cast_sign_loss, reason = "no duration is negative, and `as` saturates")]
    let whole = s.round() as u64;
    match whole {
        0..60 => format!("{s:.1}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// The inverse of [`bytes`] for an option's value: `5GB`, `4GiB`, `500 MB` or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), &text[split..]);
    let factor = match unit {
        "" | "B" => 1,
        _ => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|row| row.1).ok_or("unknown unit")?,
    };
    let size = number.parse::<f64>().map_err(|_| "expected a size such as `5GB` or `4GiB`".to_owned())? * factor as f64;
    if !(1.0..9e18).contains(&size) {
        return Err("expected a size of at least one byte".to_owned());
    }
    #[expect(clippy::cast_sign_loss, reason = "checked to be positive and below 2^63")]
    Ok(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([count(0), count(999), count(42_683), count(1_000_000)], ["0", "999", "42,683", "1,000,000"]);
        assert_eq!([bytes(12), bytes(1500), bytes(63_200_000_000)], ["12 B", "1.5 KB", "63.2 GB"]);
        assert_eq!(bytes_of(38_100_000_000, 63_200_000_000), "38.1/63.2 GB");
        assert_eq!(
            [seconds(0.42), seconds(18.6), seconds(187.0), seconds(7500.0)],
            ["0.4s", "18.6s", "3m 07s", "2h 05m"]
        );
    }

    #[test]
    fn sizes_parse_in_both_kinds_of_units() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("1.5 mb"), Ok(1_500_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "GB", "5XB", "-1GB", "0", "nan"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
