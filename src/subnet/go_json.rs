//! JSON objects as Go's `encoding/json` sees them when it fills a struct: keys match whatever their case, and of
//! several that match the last one wins.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::marker::PhantomData;

/// The members of one object, in the order of the text. `T` is `RawValue` where a member is itself an object whose
/// order matters, because a [`Value`] sorts its members.
#[derive(Debug)]
pub(super) struct Object<T = Value>(Vec<(String, T)>);

impl<T> Object<T> {
    /// The value of the last member whose key matches `name`.
    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl Object {
    /// As [`Object::get`], but `null` counts as absent: on `null`, Go leaves a string, number or boolean as it was.
    pub(super) fn get_non_null(&self, name: &str) -> Option<&Value> {
        self.get(name).filter(|value| !value.is_null())
    }

    /// The members that win, each under the spelling of its last occurrence.
    pub(super) fn into_map(self) -> Map<String, Value> {
        let mut winners = Map::new();
        for (key, value) in self.0.into_iter().rev() {
            if !winners.keys().any(|winner| winner.eq_ignore_ascii_case(&key)) {
                winners.insert(key, value);
            }
        }
        winners
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members(PhantomData))
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<T>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Object(members))
    }
}
