//! Text that others wrote, made fit to stand in a line of ours.

/// At most this many characters of such a text are shown: an error fits, a whole page does not.
pub(super) const MOST: usize = 200;

/// The beginning of `text`, on one line. Characters that cannot be printed are escaped, so that a server can neither
/// begin a line of its own in our log nor steer the terminal that shows it.
pub fn quote(text: &str) -> String {
    quote_most(text.trim(), MOST)
}

/// As [`quote`], but shows at most `most` characters of `text` and keeps the blanks around it.
pub(super) fn quote_most(text: &str, most: usize) -> String {
    let mut line = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == most {
            line.push('…');
            break;
        }
        match c {
            '"' | '\'' | '\\' => line.push(c),
            _ => line.extend(c.escape_debug()),
        }
    }
    debug_assert!(!line.contains(char::is_control));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_and_the_rest_is_escaped() {
        let plain = r#"{"message":"it's \"fine\"", naïve ünï}"#;
        assert_eq!(quote(plain), plain);
        assert_eq!(quote(" \r\n404\n"), "404");
        assert_eq!(
            quote("a\r\nb\0\x1b[2J\u{85}\u{2028}\u{202e}"),
            r"a\r\nb\0\u{1b}[2J\u{85}\u{2028}\u{202e}"
        );
    }

    #[test]
    fn a_long_text_is_cut() {
        assert_eq!(quote(&"ä".repeat(200)), "ä".repeat(200));
        assert_eq!(quote(&"ä".repeat(1 << 20)), "ä".repeat(200) + "…");
        assert_eq!(quote_most(" ab", 2), " a…");
    }
}
