//! What is right in each of two tables, and wrong in both together.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::config::reader::Section;

/// Servers on one port, and files of the same names in one folder.
pub(super) fn check(root: &mut Section<'_, '_>, config: &Config) {
    let rtsp = config.output.rtsp.as_ref().map(|rtsp| rtsp.listen);
    if let Some((console, rtsp)) = config.console.as_ref().map(|console| console.listen).zip(rtsp)
        && clash(console, rtsp)
    {
        let section = root.section("console");
        let line = format!("is {console}, and output.rtsp.listen is {rtsp}; must be another port, for one server listens on each");
        section.fault("listen", section.offset_of("listen"), &line);
    }
    let clips = config.record.as_ref().map(|record| &record.dir);
    if let Some((folder, clips)) = config.output.file.as_ref().and_then(|file| file.folder()).zip(clips)
        && whole(&folder) == whole(clips)
    {
        let section = root.section("output").section("file");
        let line = "is in the folder of record.dir, where clips have such names too; must be in another";
        section.fault("path", section.offset_of("path"), line);
    }
}

/// Whether the second of two that listen would be refused. Who listens on every address of IPv6 does so on those of IPv4.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (a == b || takes(a, b) || takes(b, a))
}

fn whole(path: &Path) -> PathBuf {
    // By its parts: what stands twice or means nothing is left out.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_room_for_one_server() {
        for (one, other, expected) in [
            ("127.0.0.1:8554", "127.0.0.1:8554", true),
            ("127.0.0.1:8554", "127.0.0.1:8600", false),
            ("127.0.0.1:8554", "127.0.0.2:8554", false),
            ("0.0.0.0:8554", "127.0.0.1:8554", true),
            ("0.0.0.0:8554", "[::1]:8554", false),
            ("[::]:8554", "127.0.0.1:8554", true),
            ("[::]:8554", "0.0.0.0:8554", true),
            ("[::1]:8554", "[::]:8554", true),
            ("127.0.0.1:8554", "[::ffff:127.0.0.1]:8554", true),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            let [one, other] = [one, other].map(|text| text.parse().unwrap());
            assert_eq!((clash(one, other), clash(other, one)), (expected, expected), "{one} {other}");
        }
    }
}
