//! What other libraries say, in words fit for an error or a status.

/// A URI without user information and query, where credentials may hide.
pub fn redact(uri: &str) -> String {
    match url::Url::parse(uri) {
        Ok(mut url) if url.has_host() => {
            // Both fail only for URLs that cannot have them.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.to_string()
        }
        _ => uri.to_string(),
    }
}

/// The first line of an error, without the places in the source code that
/// lance puts into its errors, and cut to a readable length: stores put whole
/// response bodies into theirs.
pub fn first_line(text: &str) -> String {
    const LIMIT: usize = 400;
    let mut line = text.lines().next().unwrap_or_default().to_string();
    while let Some((start, end)) = code_place(&line) {
        line.replace_range(start..end, "");
    }
    match line.char_indices().nth(LIMIT) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

/// Where `text` names a place such as `, /home/…/scan.rs:42:7`.
fn code_place(text: &str) -> Option<(usize, usize)> {
    let file = text.find(".rs:")?;
    let start = text[..file].rfind([' ', ','])?;
    let start = text[..start].trim_end_matches([' ', ',']).len();
    let rest = &text[file + 4..];
    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != ':');
    Some((start, digits.map_or(text.len(), |n| file + 4 + n)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_cut_to_one_line_without_places_in_code() {
        assert_eq!(
            first_line("No field x., /home/me/src/projection.rs:428:21\nmore"),
            "No field x."
        );
        assert_eq!(
            first_line("a (inner, /x/y.rs:1:2) and b, /z.rs:3:4"),
            "a (inner) and b"
        );
        assert_eq!(first_line("plain"), "plain");
        assert_eq!(first_line("at.rs:1"), "at.rs:1");
        assert!(first_line(&"é".repeat(900)).chars().count() <= 401);
    }

    #[test]
    fn credentials_in_a_uri_are_not_shown() {
        assert_eq!(
            redact("s3://user:secret@bucket/path?token=x"),
            "s3://bucket/path"
        );
        assert_eq!(redact("/tables"), "/tables");
    }
}
