//! Sizes and spans as people write them: `64MiB`, `4 GiB`, `1048576`; `100ms`, `5m`, `30` (seconds).

use std::time::Duration;

const KIB: u64 = 1024;

/// Bytes of a size like `64MiB`, `1.5 GiB`, `10GB` (decimal) or a plain number. The error says what is allowed.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => KIB.pow(2),
        "g" | "gib" => KIB.pow(3),
        "t" | "tib" => KIB.pow(4),
        "kb" => 1000,
        "mb" => 1000u64.pow(2),
        "gb" => 1000u64.pow(3),
        "tb" => 1000u64.pow(4),
        _ => return Err("a size is a number with an optional unit, such as 65536, 64MiB or 4GiB".into()),
    };
    scale(number, factor).ok_or_else(|| "a size is a number with an optional unit, such as 65536, 64MiB or 4GiB".into())
}

/// A span like `100ms`, `30s`, `5m`, `2h` or a plain number of seconds. The error says what is allowed.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let factor_us = match unit.to_ascii_lowercase().as_str() {
        "us" => 1,
        "ms" => 1000,
        "" | "s" | "sec" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err("a span is a number with a unit, such as 100ms, 30s or 5m".into()),
    };
    scale(number, factor_us)
        .map(Duration::from_micros)
        .ok_or_else(|| "a span is a number with a unit, such as 100ms, 30s or 5m".into())
}

/// The size in the largest unit that divides it: what [`parse_bytes`] reads back to the same number.
pub fn exact_bytes(bytes: u64) -> String {
    for (power, unit) in [(4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")] {
        let factor = KIB.pow(power);
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    bytes.to_string()
}

/// The size with one decimal, for tables: `1.5 GiB`.
pub fn rounded_bytes(bytes: u64) -> String {
    for (power, unit) in [(4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")] {
        let factor = KIB.pow(power);
        if bytes >= factor {
            let tenths = u128::from(bytes) * 10 / u128::from(factor);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// A span for messages, in the unit that suits it.
pub fn show_span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 if span.is_zero() => "0s".to_owned(),
        0 => format!("{}ms", span.as_millis()),
        1..120 => format!("{seconds}s"),
        120..7200 => format!("{}m {}s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86400, seconds / 3600 % 24),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

/// `number` (decimal, with at most six places) times `factor`, in integers so that nothing is rounded by accident.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, places) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || places.len() > 6 || (number.contains('.') && places.is_empty()) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let millionths: u64 = format!("{places:0<6}").parse().ok()?;
    let part = u128::from(millionths) * u128::from(factor) / 1_000_000;
    whole.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::{exact_bytes, parse_bytes, parse_span, rounded_bytes};
    use std::time::Duration;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("64KiB", 65536),
            ("64 kib", 65536),
            ("1.5GiB", 1_610_612_736),
            ("4 GiB", 1 << 32),
            ("10GB", 10_000_000_000),
            ("2T", 2 << 40),
            ("7b", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1..2", "1.", "64Mib/s", "lots", "99999999999TiB", "1e9", "0x10"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans() {
        assert_eq!(parse_span("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_span("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_span("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_span("30"), Ok(Duration::from_secs(30)));
        assert!(parse_span("soon").is_err());
        assert!(parse_span("5 fortnights").is_err());
    }

    #[test]
    fn exact_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 65536, 1 << 30, (1 << 30) + 1, 3 << 40] {
            assert_eq!(parse_bytes(&exact_bytes(bytes)), Ok(bytes));
        }
        assert_eq!(rounded_bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(rounded_bytes(12), "12 B");
    }
}
