//! The simulator against scripted plugins, in process and with a clock moved by hand.

mod evaluation;
mod reload;
mod script;
mod storage;
mod time;
