//! A line names a few of many, and counts the rest.

/// The first `most` of these texts, and the number of the others: `a, b and 7 more`. There are `count` in all.
pub fn few(texts: impl IntoIterator<Item = String>, count: usize, most: usize) -> String {
    let first = texts.into_iter().take(most).collect::<Vec<_>>().join(", ");
    match count.saturating_sub(most) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_counted() {
        let of = |count: usize| few((1..=count).map(|n| n.to_string()), count, 2);
        assert_eq!([0, 1, 2, 3, 9].map(of), ["", "1", "1, 2", "1, 2 and 1 more", "1, 2 and 7 more"]);
    }
}
