//! What a source file is made of, as far as the rules of its shape need to know: code without comments and literals,
//! words, blocks, and the paths by which modules name each other.
#![allow(unreachable_pub, reason = "one test binary uses it")]

pub mod circles;
pub mod docs;
pub mod paths;

/// One source file: as it is, and with comments and literals blanked out (same lines, same bytes).
pub struct Source {
    pub path: String,
    pub raw: String,
    pub code: String,
}

impl Source {
    pub fn new(path: &str, raw: &str) -> Self {
        Self { path: path.to_owned(), raw: raw.to_owned(), code: blank(raw) }
    }

    /// `src/udp/mod.rs` and `src/udp.rs` → `udp`; `None` outside `src/`, for `lib.rs` and for `main.rs`.
    pub fn room(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        let room = rest.split('/').next()?.trim_end_matches(".rs");
        (!matches!(room, "lib" | "main")).then_some(room)
    }

    fn line(&self, at: usize) -> usize {
        self.raw[..at].matches('\n').count() + 1
    }

    pub fn found(&self, at: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{}: {what}", self.path, self.line(at))
    }
}

/// Blanks comments, strings and character literals; keeps every newline and every offset.
pub fn blank(raw: &str) -> String {
    let b = raw.as_bytes();
    let mut out = b.to_vec();
    let mut i = 0;
    while i < b.len() {
        let end = literal_end(b, i);
        if let Some(end) = end {
            out[i..end].iter_mut().filter(|c| **c != b'\n').for_each(|c| *c = b' ');
            i = end;
        } else {
            i += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// Where the comment or literal that starts at `i` ends, if one does.
fn literal_end(b: &[u8], i: usize) -> Option<usize> {
    let at = |k: usize| b.get(k).copied().unwrap_or(0);
    let find = |from: usize, pat: &[u8]| {
        b[from.min(b.len())..].windows(pat.len()).position(|w| w == pat).map_or(b.len(), |n| from + n)
    };
    match (at(i), at(i + 1)) {
        (b'/', b'/') => Some(find(i, b"\n")),
        (b'/', b'*') => {
            let (mut depth, mut k) = (1, i + 2);
            while k < b.len() && depth > 0 {
                match (at(k), at(k + 1)) {
                    (b'/', b'*') => (depth, k) = (depth + 1, k + 2),
                    (b'*', b'/') => (depth, k) = (depth - 1, k + 2),
                    _ => k += 1,
                }
            }
            Some(k)
        }
        (b'r', b'"' | b'#') if i == 0 || !is_word(at(i - 1)) || at(i - 1) == b'b' => {
            let hashes = b[i + 1..].iter().take_while(|c| **c == b'#').count();
            (at(i + 1 + hashes) == b'"').then(|| {
                let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
                (find(i + 2 + hashes, &close) + close.len()).min(b.len())
            })
        }
        (b'"', _) => Some(quote_end(b, i, b'"')),
        (b'\'', b'\\') => Some(quote_end(b, i, b'\'')),
        // 'x' is a literal, 'x: a lifetime; a literal of several bytes starts with one ≥ 0x80.
        (b'\'', c) if c >= 0x80 || at(i + 2) == b'\'' => Some(quote_end(b, i, b'\'')),
        _ => None,
    }
}

fn quote_end(b: &[u8], start: usize, quote: u8) -> usize {
    let mut k = start + 1;
    while k < b.len() && b[k] != quote {
        k += if b[k] == b'\\' { 2 } else { 1 };
    }
    (k + 1).min(b.len())
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_'
}

/// Offsets of `word` in `code` as a whole word.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let b = code.as_bytes();
    code.match_indices(word).map(|(i, _)| i).filter(move |&i| {
        (i == 0 || !is_word(b[i - 1])) && b.get(i + word.len()).is_none_or(|c| !is_word(*c))
    })
}

/// The identifier that `text` starts with, after blanks.
pub fn ident(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.bytes().take_while(|c| is_word(*c)).count()]
}

/// The offset just past the brace that closes the one at `open`.
pub fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (i, c) in code[open..].bytes().enumerate() {
        match c {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + i + 1;
        }
    }
    code.len()
}
