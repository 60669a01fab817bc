//! The catalogue of what the data path does with every kind of packet, run by
//! BPF_PROG_TEST_RUN. Expected frames come from the harness's own packet
//! builder and never from the balancer's code.

mod lab;

mod budget;
mod defence;
mod forward;
mod fragment;
mod fragment_ways;
mod full_nat;
mod full_nat_vlan;
mod icmp;
mod icmp_error;
mod icmp_full_nat;
mod icmp_head;
mod icmp_route;
mod lookup;
mod malformed;
mod mutated_replies;
mod mutations;
mod neighbour;
mod oracle;
mod persistence;
mod pool;
mod probe;
mod random;
mod reader;
mod reply_flow;
mod reply_route;
mod reset;
mod sample;
mod scheduled;
mod tracked;
mod tunnel;
mod unbalanced;
mod virtual_mac;
mod vlan;
