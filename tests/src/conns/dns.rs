//! Just enough DNS (RFC 1035) to answer `dig`: one TXT record, whatever the
//! question, with the server's name.

const HEADER_BYTES: usize = 12;

/// The answer to a query with one question, or nothing for what is none.
pub(super) fn answer(query: &[u8], name: &str) -> Option<Vec<u8>> {
    let header = query.get(..HEADER_BYTES)?;
    let is_response = header[2] & 0x80 != 0;
    if is_response || header[4..6] != [0, 1] {
        return None;
    }
    let mut end = HEADER_BYTES;
    loop {
        let length = usize::from(*query.get(end)?);
        if length > 63 {
            return None;
        }
        end += 1 + length;
        if length == 0 {
            break;
        }
    }
    let question = query.get(HEADER_BYTES..end + 4)?;
    let text = &name.as_bytes()[..name.len().min(255)];
    let mut out = header[..2].to_vec();
    let recursion_desired = header[2] & 1;
    out.extend([0x84 | recursion_desired, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
    out.extend(question);
    // The question's name by pointer; TXT, IN, a TTL of 0.
    out.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0]);
    out.push(u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend(text);
    Some(out)
}
