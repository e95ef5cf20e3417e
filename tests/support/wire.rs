//! A TCP wire to a broker that can be cut and blocked.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Relays connections to a port on loopback.
pub struct Wire {
    port: u16,
    blocked: Arc<AtomicBool>,
    /// Bytes a second to the broker; 0: as fast as may be.
    rate: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    /// To this port.
    pub fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (blocked, open) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let rate = Arc::<AtomicUsize>::default();
        let (block, all, pace) = (blocked.clone(), open.clone(), rate.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, Ok(broker)) = (client.unwrap(), TcpStream::connect(("127.0.0.1", to))) else { continue };
                all.lock().unwrap().extend([client.try_clone().unwrap(), broker.try_clone().unwrap()]);
                let back = Arc::<AtomicUsize>::default();
                for (from, to, pace) in [(client.try_clone().unwrap(), broker.try_clone().unwrap(), pace.clone()), (broker, client, back)] {
                    let block = block.clone();
                    std::thread::spawn(move || relay(from, to, &block, &pace));
                }
            }
        });
        Self { port, blocked, rate, open }
    }

    /// Where to connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    /// From now on so many bytes a second pass to the broker, as on a slow line.
    pub fn slow(&self, rate: usize) {
        self.rate.store(rate, Ordering::SeqCst);
    }

    /// Nothing passes either way, and nobody is told (`true`); or it does again.
    pub fn block(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::SeqCst);
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, blocked: &AtomicBool, rate: &AtomicUsize) {
    let mut bytes = [0; 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        while blocked.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if let rate @ 1.. = rate.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_secs_f64(length as f64 / rate as f64));
        }
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}
