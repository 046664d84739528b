//! Authentication challenges of a registry, and the `Authorization` header that answers them.

/// The `Authorization` header of a request.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Authorization {
    /// A token.
    Bearer(String),
    /// A name and a password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
    }
}

/// A `WWW-Authenticate` header, as far as we support it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Get a token from this service.
    Bearer {
        /// The URL of the token service.
        realm: String,
        /// The registry's name at the token service.
        service: Option<String>,
    },
    /// A user name and password.
    Basic,
    /// Another scheme, which we do not support.
    Other,
}

impl Challenge {
    /// Parses one header value, RFC 7235 section 4.1: `Bearer realm="…",service="…",scope="…"`.
    pub fn parse(header: &str) -> Self {
        let header = header.trim();
        if header.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic")) {
            return Self::Basic;
        }
        let Some((scheme, rest)) = header.split_once(' ') else { return Self::Other };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Self::Other;
        }
        let mut realm = None;
        let mut service = None;
        let mut rest = rest.trim();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = value(after);
            match key.trim().trim_start_matches(',').trim() {
                key if key.eq_ignore_ascii_case("realm") => realm = Some(value),
                key if key.eq_ignore_ascii_case("service") => service = Some(value),
                _ => {}
            }
            rest = after;
        }
        realm.map_or(Self::Other, |realm| Self::Bearer { realm, service })
    }
}

/// A token or quoted string at the start of `text`, and the rest.
fn value(text: &str) -> (String, &str) {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        };
        for (header, wanted) in [
            (
                r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:a/b:pull""#,
                bearer("https://ghcr.io/token", Some("ghcr.io")),
            ),
            (r#"bearer service=x, realm="https://a/\"b", error="invalid_token""#, bearer("https://a/\"b", Some("x"))),
            (r#"Bearer realm="https://a/t""#, bearer("https://a/t", None)),
            (r#"Bearer realm="https://a/t"#, bearer("https://a/t", None)),
            (r#"Basic realm="x""#, Challenge::Basic),
            (r#"Bearer service="x""#, Challenge::Other),
            ("Bearer", Challenge::Other),
            ("", Challenge::Other),
        ] {
            assert_eq!(Challenge::parse(header), wanted, "{header}");
        }
    }
}
