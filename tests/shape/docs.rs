//! Documentation that says nothing.

use super::Source;

/// As many words must a doc comment have to make sense by itself.
const LEAST_WORDS: usize = 3;
const QUESTION_WORDS: &[&str] =
    &["how", "since when", "until when", "what", "when", "where", "which", "who", "whose", "why"];

/// Doc comments of fewer than three words, and lone question words: an editor shows them without their neighbours.
pub fn docs_say_something(s: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let mut comment = (0, String::new());
    let mut at = 0;
    for line in s.raw.lines().chain([""]) {
        let text = line.trim_start().strip_prefix("///").filter(|text| !text.starts_with('/'));
        match text {
            Some(text) => {
                if comment.1.is_empty() {
                    comment.0 = at;
                }
                comment.1 += text;
                comment.1.push('\n');
            }
            None if !comment.1.is_empty() => {
                found.extend(complaint(&comment.1).map(|what| s.found(comment.0, what)));
                comment.1.clear();
            }
            None => {}
        }
        at = (at + line.len() + 1).min(s.raw.len());
    }
    found
}

fn complaint(text: &str) -> Option<String> {
    let text = text.trim();
    let words = text.split_whitespace().count();
    if words < LEAST_WORDS {
        return Some(format!("a doc comment of {words} word(s): {text:?}"));
    }
    let first = text.split(['.', ';', ':', '?']).next().unwrap_or_default().trim().to_lowercase();
    QUESTION_WORDS
        .contains(&first.as_str())
        .then(|| format!("a doc comment that begins with a lone {first:?}"))
}
