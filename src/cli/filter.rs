//! Filters of `shardex search --filter`: their language.
//!
//! ```text
//! filter := term { "or" term }       term := factor { "and" factor }
//! factor := "not" factor | "(" filter ")" | "all(" TAGS ")" | "any(" TAGS ")" | "none(" TAGS ")" | "ids(" LIST ")"
//! ```
//!
//! TAGS is a number, decimal or `0x` and hexadecimal. LIST has ids and ranges `A..B` (A inclusive, B exclusive), with
//! commas, or is `@FILE` with one of them per line.

use std::ops::Range;

use shardex::{DocumentId, Filter};

use super::ids::{id_range, raw_id};

/// Maximum number of ids of a list. They are kept in memory, 16 bytes each.
const MAX_IDS: usize = 50_000_000;

/// Parses a filter. Returns a message that names the position if it is invalid.
pub(crate) fn parse(text: &str) -> Result<Filter, String> {
    let mut parser = Parser { text, at: 0 };
    let filter = parser.either()?;
    parser.space();
    if parser.at < text.len() { Err(parser.wrong("`and`, `or` or the end")) } else { Ok(filter) }
}

struct Parser<'a> {
    text: &'a str,
    /// Position in bytes.
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn wrong(&self, expected: &str) -> String {
        let form = "such as `any(0x3) and not ids(5..9,12)`";
        match self.rest().chars().take(20).collect::<String>() {
            rest if rest.is_empty() => format!("{expected} expected at the end; give a filter {form}"),
            rest => format!("{expected} expected at `{rest}`; give a filter {form}"),
        }
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Consumes a symbol, or a word that no letter follows.
    fn take(&mut self, token: &str) -> bool {
        self.space();
        let Some(after) = self.rest().strip_prefix(token) else { return false };
        let is_word = token.starts_with(|c: char| c.is_ascii_alphabetic());
        if is_word && after.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return false;
        }
        self.at += token.len();
        true
    }

    fn either(&mut self) -> Result<Filter, String> {
        let mut filter = self.both()?;
        while self.take("or") {
            filter = filter | self.both()?;
        }
        Ok(filter)
    }

    fn both(&mut self) -> Result<Filter, String> {
        let mut filter = self.factor()?;
        while self.take("and") {
            filter = filter & self.factor()?;
        }
        Ok(filter)
    }

    fn factor(&mut self) -> Result<Filter, String> {
        if self.take("not") {
            return Ok(!self.factor()?);
        }
        if self.take("(") {
            let filter = self.either()?;
            return if self.take(")") { Ok(filter) } else { Err(self.wrong("`)`")) };
        }
        for (name, of_tags) in [
            ("all", Filter::all_tags as fn(u64) -> Filter),
            ("any", Filter::any_tags as fn(u64) -> Filter),
            ("none", Filter::no_tags as fn(u64) -> Filter),
        ] {
            if self.take(name) {
                return Ok(of_tags(tags(self.argument()?)?));
            }
        }
        if self.take("ids") {
            return ids(self.argument()?).map(Filter::documents);
        }
        Err(self.wrong("`not`, `(`, `all(…)`, `any(…)`, `none(…)` or `ids(…)`"))
    }

    /// Consumes an argument in parentheses.
    fn argument(&mut self) -> Result<&'a str, String> {
        if !self.take("(") {
            return Err(self.wrong("`(`"));
        }
        let rest = self.rest();
        let Some(end) = rest.find(')') else { return Err(self.wrong("`)`")) };
        self.at += end + 1;
        Ok(rest[..end].trim())
    }
}

fn tags(text: &str) -> Result<u64, String> {
    let tags = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    tags.map_err(|error| format!("`{text}`: {error}; give tags as a number of 64 bits, such as 5 or 0x5"))
}

fn ids(list: &str) -> Result<Vec<DocumentId>, String> {
    let mut ids = Vec::new();
    match list.strip_prefix('@') {
        Some(path) => {
            let lines = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
            for (number, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                add(line.trim(), &mut ids).map_err(|what| format!("{path}: line {}: {what}", number + 1))?;
            }
        }
        None => list.split(',').try_for_each(|part| add(part.trim(), &mut ids))?,
    }
    Ok(ids)
}

/// Adds an id, or the ids of a range.
fn add(part: &str, ids: &mut Vec<DocumentId>) -> Result<(), String> {
    let Range { start, end } = if part.contains("..") {
        id_range(part)?
    } else {
        let id = raw_id(part).map_err(|error| format!("`{part}`: {error}"))?;
        // The last id has no id after it.
        ids.push(DocumentId(id));
        return Ok(());
    };
    if end - start > (MAX_IDS - ids.len().min(MAX_IDS)) as u128 {
        return Err(format!("{part}: more than {MAX_IDS} ids; use tags for so many"));
    }
    ids.extend((start..end).map(DocumentId));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_as_they_are_meant() {
        for (text, meant) in [
            ("any(3)", "tags(all 0x0, any 0x3, none 0x0)"),
            ("not any(0x3)", "!tags(all 0x0, any 0x3, none 0x0)"),
            (
                "all(1) and none(2) or ids(7)",
                "((tags(all 0x1, any 0x0, none 0x0) & tags(all 0x0, any 0x0, none 0x2)) | 1 documents)",
            ),
            (
                "all(1) and (none(2) or ids( 7, 8..11 ))",
                "(tags(all 0x1, any 0x0, none 0x0) & (tags(all 0x0, any 0x0, none 0x2) | 4 documents))",
            ),
            ("not(ids(0x10))", "!1 documents"),
        ] {
            assert_eq!(parse(text).map(|filter| format!("{filter:?}")), Ok(meant.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_named() {
        for (text, part) in [
            ("", "at the end"),
            ("any", "`(` expected"),
            ("any(x)", "`x`"),
            ("any(-1)", "`-1`"),
            ("anything(3)", "expected at `anything(3)`"),
            ("any(1) any(2)", "expected at `any(2)`"),
            ("(any(1)", "`)` expected"),
            ("any(1", "`)` expected"),
            ("ids()", "``"),
            ("ids(5..5)", "holds no id"),
            ("ids(0..340282366920938463463374607431768211455)", "more than"),
            ("ids(@/no/such/file)", "/no/such/file"),
            ("any(1) or", "at the end"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
