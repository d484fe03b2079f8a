//! Reads a bundle's folder.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// A bundle's files are small; anything larger is a mistake.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
const DEPTH_MAX: usize = 3;

/// All files below the folder: path from there, with `/` → bytes. Hidden files and `README.md` are not
/// part of a bundle; links are refused.
///
/// # Errors
/// When something cannot be read, is a link, or is too large.
pub fn read_dir(dir: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    collect(dir, "", DEPTH_MAX, &mut files)?;
    Ok(files)
}

fn collect(
    dir: &Path,
    prefix: &str,
    depth: usize,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> io::Result<()> {
    let refuse =
        |path: &Path, why: &str| Err(io::Error::other(format!("{}: {why}", path.display())));
    let Some(deeper) = depth.checked_sub(1) else {
        return refuse(dir, "folders are nested too deeply");
    };
    let listed = std::fs::read_dir(dir)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))?;
    for entry in listed {
        let entry = entry?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return refuse(&path, "the name is not UTF-8");
        };
        if name.starts_with('.') || name == "README.md" {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            return refuse(&path, "links are not followed");
        }
        if kind.is_dir() {
            collect(&path, &format!("{prefix}{name}/"), deeper, files)?;
        } else if entry.metadata()?.len() > FILE_BYTES_MAX {
            return refuse(&path, "the file is too large");
        } else {
            files.insert(format!("{prefix}{name}"), std::fs::read(&path)?);
        }
    }
    Ok(())
}
