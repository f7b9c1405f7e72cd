//! The end of workers as the control thread sees it. The tests make the workers by hand.

use crate::engine::{Alive, Command, Engine, Handle};
use crossbeam::channel::{Receiver, bounded};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake as StdWake, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// What a worker does with its commands.
type Body = Box<dyn FnOnce(Receiver<Command>) -> io::Result<()> + Send>;

/// An engine of workers that do what the closures say.
fn engine(bodies: Vec<Body>) -> Engine {
    let mut engine = Engine { workers: Vec::new(), carriers: Vec::new(), waiting: Arc::default() };
    for body in bodies {
        let (sender, commands) = bounded(1);
        let (sign, alive) = bounded(0);
        let sign = Alive { sender: Some(sign), waiting: Arc::clone(&engine.waiting) };
        let thread = thread::spawn(move || {
            let _sign = sign;
            body(commands)
        });
        let (wake, counters) = (crate::ring::Wake::new().unwrap(), Arc::default());
        engine.workers.push(Handle { commands: sender, wake, counters, thread: Some(thread), alive });
    }
    engine
}

/// Works until it is told to stop.
fn good(commands: &Receiver<Command>) -> io::Result<()> {
    while !matches!(commands.recv(), Ok(Command::Stop) | Err(_)) {}
    Ok(())
}

#[derive(Default)]
struct Count(AtomicUsize);

impl StdWake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn wakes(trigger: impl FnOnce(Receiver<()>) -> io::Result<()> + Send + 'static) {
    let (go, gate) = bounded(1);
    let engine = engine(vec![Box::new(|commands| good(&commands)), Box::new(move |_| trigger(gate))]);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    assert_eq!(engine.poll_ended(&mut context), Poll::Pending);
    assert_eq!((engine.ended(), count.0.load(Ordering::SeqCst)), (None, 0));
    go.send(()).unwrap();
    let start = Instant::now();
    while count.0.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "nobody is woken");
        thread::sleep(Duration::from_millis(1));
    }
    // Whoever is woken finds it at once.
    assert_eq!(engine.poll_ended(&mut context), Poll::Ready(1));
    assert_eq!(engine.ended(), Some(1));
    assert!(engine.stop().1.is_err());
}

#[test]
fn a_worker_that_fails_wakes_the_control_thread() {
    wakes(|gate| {
        gate.recv().unwrap();
        Err(io::Error::other("useless"))
    });
}

#[test]
fn a_worker_that_panics_wakes_the_control_thread() {
    wakes(|gate| {
        gate.recv().unwrap();
        panic!("on purpose");
    });
}

#[test]
fn a_worker_that_never_answers_holds_nobody() {
    for full in [false, true] {
        let (hung, release) = bounded::<()>(0);
        let engine = engine(vec![
            Box::new(move |_commands| {
                let _ = release.recv();
                Ok(())
            }),
            Box::new(|commands| good(&commands)),
        ]);
        if full {
            engine.workers[0].commands.send(Command::Stop).unwrap();
        }
        let start = Instant::now();
        let (_, result) = engine.stop();
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
        drop(hung);
    }
}
