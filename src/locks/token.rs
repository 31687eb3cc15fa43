//! A secret that all who may talk to the coordinator share.

use super::error::LockError;
use super::files::{self, Watched};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue, errors::InvalidMetadataValue};

/// The shortest that is taken, characters: what 24 random bytes are in base64.
const SHORTEST: usize = 32;

/// A token from a file, whose surrounding white space doesn't count.
pub struct Token(Watched<String>);

impl Token {
    /// Reads it.
    ///
    /// # Errors
    /// If the file can't be read, or what it holds is no token.
    pub fn open(path: &Path) -> Result<Self, LockError> {
        let file: PathBuf = path.to_owned();
        let token = Watched::open(vec![path.to_owned()], move || read(&file))?;
        Ok(Self(token))
    }

    /// As a request carries it. It is marked as what no log shows.
    pub(super) fn header(&self) -> Result<MetadataValue<Ascii>, InvalidMetadataValue> {
        let mut header = MetadataValue::try_from(format!("Bearer {}", self.0.current()))?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// Whether a request carries it; the time that the answer takes tells nothing of the token.
    ///
    /// # Errors
    /// What to tell the caller: that there is none, or that it is another one.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), &'static str> {
        let given = metadata
            .get("authorization")
            .ok_or("this coordinator wants a token: give the file that holds it in --token-file")?;
        let expected = format!("Bearer {}", self.0.current());
        // Digests are of one length, whatever was given.
        let given = Sha256::digest(given.as_encoded_bytes());
        let expected = Sha256::digest(expected.as_bytes());
        match bool::from(given[..].ct_eq(&expected[..])) {
            true => Ok(()),
            false => Err("the token is not this coordinator's: see --token-file on both sides"),
        }
    }
}

/// Without the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token of {}", self.0.names())
    }
}

fn read(path: &Path) -> Result<String, LockError> {
    let wrong = |found: &str| LockError::Content {
        option: "--token-file",
        path: path.to_owned(),
        found: found.to_owned(),
        expected: "at least 32 letters, digits or signs on one line, as from `openssl rand -hex 32`",
    };
    let bytes = files::read("--token-file", path)?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("it holds bytes that are no text"))?;
    let token = text.trim();
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            "it holds more than one word, or signs that are not ASCII",
        ));
    }
    if token.len() < SHORTEST {
        let found = format!("its token has {} characters", token.len());
        return Err(wrong(&found));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    fn token(text: &str) -> (tempfile::TempDir, Result<Token, LockError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, text).unwrap();
        let token = Token::open(&path);
        (folder, token)
    }

    #[test]
    fn only_the_whole_token_is_taken_and_no_message_shows_it() {
        let (folder, token) = token(&format!("  {GOOD}\n"));
        let token = token.unwrap();
        let mut request = MetadataMap::new();
        assert!(token.check(&request).unwrap_err().contains("--token-file"));
        for wrong in [
            GOOD.to_owned(),
            format!("Bearer {}", &GOOD[1..]),
            format!("Bearer {GOOD}0"),
            format!("bearer {GOOD}"),
            "Bearer ".to_owned(),
        ] {
            request.insert("authorization", wrong.parse().unwrap());
            let refused = token.check(&request).unwrap_err();
            assert!(!refused.contains("0123"), "{refused}");
        }
        request.insert("authorization", token.header().unwrap());
        assert_eq!(token.check(&request), Ok(()));
        let shown = format!("{token:?} {:?}", token.header().unwrap());
        assert!(!shown.contains("0123"), "{shown}");
        // Both sides take a new one when it is there.
        let new = GOOD.replace('0', "x");
        std::fs::write(folder.path().join("token"), &new).unwrap();
        assert!(token.check(&request).is_err());
        request.insert("authorization", token.header().unwrap());
        assert_eq!(token.check(&request), Ok(()));
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        for wrong in [
            "",
            "\n",
            "secret",
            &format!("{GOOD} {GOOD}"),
            &format!("{GOOD}ü"),
        ] {
            let error = token(wrong).1.unwrap_err().to_string();
            assert!(error.contains("openssl rand"), "{error}");
            assert!(
                !error.contains("0123") && !error.contains("secret"),
                "{error}"
            );
        }
    }
}
