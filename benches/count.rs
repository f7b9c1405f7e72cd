//! Runs one pure operation a number of times and nothing else, so that `benches/callgrind.sh` can count instructions.
//! `count` lists the operations as `name packets bytes`, and `count NAME TIMES` runs one.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod pure;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    for (name, make) in pure::all() {
        match args.as_slice() {
            [wanted, times] if *wanted == name => {
                let mut op = make();
                for _ in 0..times.parse().unwrap() {
                    (op.run)();
                }
            }
            [_, _] => {}
            _ => {
                let op = make();
                println!("{name} {} {}", op.packets, op.bytes);
            }
        }
    }
}
