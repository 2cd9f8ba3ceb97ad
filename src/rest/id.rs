//! Identifier paths: in the URL, percent-encoded and joined by a delimiter.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use super::fields;

/// The delimiter, unless the query says another.
pub const DELIMITER: &str = "$";

/// The `{id}` of the path, split by the query's `delimiter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathId(pub Vec<String>);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // axum's own Path decodes, and refuses in its own words.
        let segment = raw_segment(parts.uri.path());
        let delimiter = parts
            .uri
            .query()
            .into_iter()
            .flat_map(|query| url::form_urlencoded::parse(query.as_bytes()))
            .find(|(name, _)| name == "delimiter")
            .map(|(_, value)| value.into_owned());
        let id = split(&segment, delimiter.as_deref().unwrap_or(DELIMITER))?;
        fields::check_view(&id)?;
        Ok(PathId(id))
    }
}

/// `{id}` of `/v1/KIND/{id}/OPERATION`, as it stands in the URL.
fn raw_segment(path: &str) -> String {
    path.split('/').nth(3).unwrap_or_default().to_string()
}

/// The parts of an id as it stands in a URL.
pub fn split(encoded: &str, delimiter: &str) -> Result<Vec<String>, ApiError> {
    if delimiter.is_empty() {
        return Err(ApiError::InvalidInput(
            "delimiter is empty; leave it out to use '$'".into(),
        ));
    }
    let id = percent_decode_str(encoded).decode_utf8().map_err(|_| {
        ApiError::InvalidInput("the id in the path is no UTF-8 once it is percent-decoded".into())
    })?;
    let parts: Vec<String> = id.split(delimiter).map(str::to_string).collect();
    if parts.iter().any(String::is_empty) {
        return Err(ApiError::InvalidInput(format!(
            "the id '{id}' in the path has an empty part; its parts are separated by '{delimiter}'"
        )));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_decoded_first_and_split_then() {
        assert_eq!(split("v", "$").unwrap(), ["v"]);
        assert_eq!(split("sales$daily", "$").unwrap(), ["sales", "daily"]);
        assert_eq!(split("sales%24daily", "$").unwrap(), ["sales", "daily"]);
        assert_eq!(split("sales.daily$x", ".").unwrap(), ["sales", "daily$x"]);
        assert_eq!(split("a::b", "::").unwrap(), ["a", "b"]);
        assert_eq!(split("caf%C3%A9", "$").unwrap(), ["café"]);
    }

    #[test]
    fn empty_parts_an_empty_delimiter_and_bytes_that_are_no_text_are_refused() {
        for (id, delimiter) in [
            ("$", "$"),
            ("a$", "$"),
            ("$a", "$"),
            ("a$$b", "$"),
            ("a", ""),
            ("%FF", "$"),
        ] {
            let error = split(id, delimiter).unwrap_err();
            assert!(matches!(error, ApiError::InvalidInput(_)), "{id}: {error}");
        }
    }
}
