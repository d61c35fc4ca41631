//! Ids, ranges of ids and keys of postings as arguments.

use std::ops::Range;

use shardex::{DocumentId, PostingKey};

pub(crate) fn raw_id(text: &str) -> Result<u128, String> {
    text.parse::<DocumentId>().map(u128::from).map_err(|error| error.to_string())
}

pub(crate) fn posting_key(text: &str) -> Result<PostingKey, String> {
    let form = "give a key as ID:START:LENGTH";
    let parts: Vec<&str> = text.split(':').collect();
    let [id, start, length] = parts[..] else { return Err(form.into()) };
    let number = |text: &str| text.parse::<u32>().map_err(|error| format!("`{text}`: {error}; {form}"));
    let id = id.parse::<DocumentId>().map_err(|error| format!("`{id}`: {error}; {form}"))?;
    Ok(PostingKey::new(id, number(start)?, number(length)?))
}

pub(crate) fn id_range(text: &str) -> Result<Range<u128>, String> {
    let (from, to) = text.split_once("..").ok_or("give two ids as A..B")?;
    let id = |text: &str| raw_id(text).map_err(|error| format!("`{text}`: {error}; give two ids as A..B"));
    let range = id(from)?..id(to)?;
    if range.is_empty() { Err(format!("{text} holds no id: A must be less than B")) } else { Ok(range) }
}
