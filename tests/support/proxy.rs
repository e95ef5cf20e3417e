//! A wire between a camera and its viewer that spoils what it carries.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Relays RTSP over TCP to a camera, and while told to fills media packets with garbage.
pub struct Proxy {
    port: u16,
    spoils: Arc<AtomicBool>,
    spoiled: Arc<AtomicU64>,
}

impl Proxy {
    /// To the camera on this port.
    pub fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (spoils, spoiled) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let shared = (spoils.clone(), spoiled.clone());
        std::thread::spawn(move || {
            for viewer in listener.incoming() {
                let (viewer, Ok(camera)) = (viewer.unwrap(), TcpStream::connect(("127.0.0.1", to))) else { continue };
                let (mut asks, mut asked) = (viewer.try_clone().unwrap(), camera.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut asks, &mut asked));
                let (spoils, spoiled) = shared.clone();
                std::thread::spawn(move || relay(camera, viewer, &spoils, &spoiled));
            }
        });
        Self { port, spoils, spoiled }
    }

    /// The address to play.
    pub fn uri(&self) -> String {
        format!("rtsp://127.0.0.1:{}/cam", self.port)
    }

    /// From now on packets are spoiled, or not.
    pub fn spoil(&self, spoils: bool) {
        self.spoils.store(spoils, Ordering::SeqCst);
    }

    /// How many were.
    pub fn spoiled(&self) -> u64 {
        self.spoiled.load(Ordering::SeqCst)
    }
}

/// Interleaved packets (RFC 2326, 10.12) and the replies between them.
fn relay(camera: TcpStream, mut viewer: TcpStream, spoils: &AtomicBool, spoiled: &AtomicU64) -> Option<()> {
    let mut camera = BufReader::new(camera);
    let mut noise = 1_u64;
    loop {
        if camera.fill_buf().ok()?.first()? != &b'$' {
            let mut line = Vec::new();
            camera.read_until(b'\n', &mut line).ok()?;
            viewer.write_all(&line).ok()?;
            continue;
        }
        let mut head = [0; 4];
        camera.read_exact(&mut head).ok()?;
        let mut packet = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
        camera.read_exact(&mut packet).ok()?;
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Two of three media packets, behind their RTP header.
        if head[1] == 0 && spoils.load(Ordering::SeqCst) && !(noise >> 33).is_multiple_of(3) {
            spoiled.fetch_add(1, Ordering::SeqCst);
            for byte in packet.iter_mut().skip(12) {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (noise >> 56) as u8;
            }
        }
        viewer.write_all(&head).and_then(|()| viewer.write_all(&packet)).ok()?;
    }
}
