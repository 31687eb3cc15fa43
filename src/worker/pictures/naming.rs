//! Names of the files that are written.

use std::path::{Path, PathBuf};

/// The file that a person has named: with the extension `usual`, if the name has none.
pub(in crate::worker) fn named(path: &Path, usual: &str) -> PathBuf {
    match path.extension() {
        None if path.file_name().is_some() => path.with_extension(usual),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_an_extension_gets_the_usual_one() {
        let name = |text| named(Path::new(text), "png");
        assert_eq!(name("out/grid"), Path::new("out/grid.png"));
        assert_eq!(name("grid.gif"), Path::new("grid.gif"));
        assert_eq!(name("grid.v2"), Path::new("grid.v2"), "it is refused later");
        assert_eq!(name(".."), Path::new(".."));
    }
}
