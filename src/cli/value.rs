//! The forms of values are those that Go's `flag` package reads, where flannel has the flag too.

use std::fmt;
use std::time::Duration;

/// A flag's value that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    Int(i64),
    Text(String),
    Duration(Duration),
    Cores(Vec<usize>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Text(value) => f.write_str(value.trim()),
            Self::Duration(value) => write!(f, "{value:?}"),
            Self::Cores(value) => write!(f, "{value:?}"),
        }
    }
}

/// Reads what Go's `strconv.ParseBool` reads.
pub(super) fn bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// Reads what Go's `strconv.ParseInt` reads with base 0: decimal, `0x`, `0o` or `0` for octal, `0b`, and underscores
/// between digits.
pub(super) fn int(text: &str, min: i64, max: i64) -> Result<i64, String> {
    let range = || format!("a whole number from {min} to {max}");
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (digits, radix) = if let Some(rest) = lower.strip_prefix("0x") {
        (rest, 16)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (rest, 2)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (rest, 8)
    } else if let Some(rest) = lower.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        (rest, 8)
    } else {
        (lower.as_str(), 10)
    };
    // from_str_radix would take a second sign.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(range());
    }
    let magnitude = i64::from_str_radix(&digits.replace('_', ""), radix).map_err(|_| range())?;
    debug_assert!(magnitude >= 0, "the sign was taken off");
    let number = if negative { -magnitude } else { magnitude };
    if (min..=max).contains(&number) { Ok(number) } else { Err(range()) }
}

/// Reads whole seconds (`90`), or numbers with units as Go writes durations (`24h`, `1h30m`, `500ms`).
pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let form = || format!("seconds, or a duration such as 24h or 1h30m, from {min:?} to {max:?}");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(form());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().map_err(|_| form())?;
        let tail = &rest[digits..];
        let unit = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let micros_per_unit = match &tail[..unit] {
            "" if rest.len() == text.len() => 1_000_000,
            "us" => 1,
            "ms" => 1000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            _ => return Err(form()),
        };
        let part = number.checked_mul(micros_per_unit).map(Duration::from_micros).ok_or_else(form)?;
        total = total.checked_add(part).ok_or_else(form)?;
        rest = &tail[unit..];
    }
    if (min..=max).contains(&total) { Ok(total) } else { Err(form()) }
}

/// `CPU_SETSIZE` of sched_setaffinity(2); the numbers of cores are below it.
pub(super) const MAX_CORES: usize = 1024;

/// Reads a list of cores and ranges of cores such as `0,2-5`, with each core at most once.
pub(super) fn cores(text: &str) -> Result<Vec<usize>, String> {
    let form = || format!("cores below {MAX_CORES} such as 0,2-5, each at most once");
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < MAX_CORES).ok_or_else(form);
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last || (first..=last).any(|core| cores.contains(&core)) {
            return Err(form());
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}
