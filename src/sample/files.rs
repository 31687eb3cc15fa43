//! Pictures as files: which format a name promises, and whole or invisible.

use super::SampleError;
use image::{DynamicImage, ImageFormat};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What a picture's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One picture, all of its colours.
    Png,
    /// A film of at most 256 colours a frame.
    Gif,
    /// A film, all of its colours.
    WebP,
}

impl Format {
    /// How its files' names end.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Gif => "gif",
            Format::WebP => "webp",
        }
    }

    /// What the name `path` promises, if it is one of these.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        [Format::Png, Format::Gif, Format::WebP]
            .into_iter()
            .find(|format| extension.eq_ignore_ascii_case(format.extension()))
    }

    /// What `path` promises, which must be one of `known`.
    ///
    /// # Errors
    /// [`SampleError::Name`].
    pub fn expect(path: &Path, known: &'static [Format]) -> Result<Self, SampleError> {
        Self::of(path)
            .filter(|format| known.contains(format))
            .ok_or_else(|| SampleError::Name {
                path: path.to_owned(),
                known,
            })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Png => "PNG",
            Format::Gif => "GIF",
            Format::WebP => "WebP",
        })
    }
}

/// Writes `picture` to the PNG file `path`, whose name ends in `.png` (or `.PNG`). A reader sees
/// the whole picture or the one that was there before.
///
/// # Errors
/// [`SampleError`]; no file is left behind then. Its folder, which is created if it isn't there,
/// stays.
pub fn write_picture(path: &Path, picture: &DynamicImage) -> Result<(), SampleError> {
    Format::expect(path, &[Format::Png])?;
    let mut bytes = io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|source| SampleError::Encode {
            path: path.to_owned(),
            source,
        })?;
    write_whole(path, bytes.get_ref())
}

/// Writes `bytes` to the file `path`. A reader sees all of it or what was there before.
///
/// # Errors
/// [`SampleError::Io`]; no file is left behind then. Its folder, which is created if it isn't there,
/// stays.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), SampleError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| SampleError::Io {
            operation,
            path,
            source,
        }
    };
    let Some(name) = path.file_name() else {
        return Err(failed("write", path)(io::ErrorKind::InvalidInput.into()));
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
    }
    let mut temporary = std::ffi::OsString::from(".tmp-");
    temporary.push(name);
    temporary.push(format!("-{}", std::process::id()));
    let temporary = path.with_file_name(temporary);

    let written = write(&temporary, bytes)
        .map_err(failed("write", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("rename to it", path)));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write(path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(bytes)?;
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_format_it_is() {
        assert_eq!(Format::of(Path::new("a/b.png")), Some(Format::Png));
        assert_eq!(Format::of(Path::new("a.png.GIF")), Some(Format::Gif));
        assert_eq!(Format::of(Path::new("x.WebP")), Some(Format::WebP));
        for name in ["x", "png", ".gif", "x.jpg", "x."] {
            assert_eq!(Format::of(Path::new(name)), None, "{name}");
        }
        let known = &[Format::Gif, Format::WebP];
        let refused = Format::expect(Path::new("way.png"), known).unwrap_err();
        let message = refused.to_string();
        assert!(message.contains("way.png"), "{message}");
        assert!(message.contains(".gif or .webp"), "{message}");
    }
}
