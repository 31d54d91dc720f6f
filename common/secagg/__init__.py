"""Secure aggregation: the coordinator learns a sum of hospitals' vectors, and nothing else.

Lineage: pairwise masks with self masks and secret-shared recovery (Bonawitz et al.,
"Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017), keys
that outlive a round (as in Bell et al., "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS 2020, masks cancel along edges of a graph; here the
graph is complete). Ours: header-bound keys, a ratchet, and a quorum certificate in
front of every secret. `docs/protocol.md` is the specification; sections are cited.

Roles. n *nodes* (hospitals) of which c may collude with the *coordinator*, which may
lie as it likes; a roster both pin by certificates. All bytes go through the coordinator.

Epoch (3.3), once per membership change or 256 rounds:
  1. KeyAdvert     fresh X25519, ML-KEM-768, Ed25519 keys, signed by the certificate
  2. Roster, Kem   every node checks all adverts; each pair agrees on a chain key
  3. Confirm       chains are durable, agreement keys erased
Round (4), header `hd` binds the model, the numbers, the members and their fresh nonces:
  4. RoundStart    chains step; edge seeds e_ij = e_ji, self seed b_i            keys
  5. Upload        y_i = v_i + PRG(b_i) +- sum_j PRG(e_ij)  mod 2^w          masking, prg
                   + sealed Shamir shares of b_i and e_ij, tags, commitment  shamir, sealed
  6. Propose       the survivor set S; each member signs one set, ever      transcript
  7. Certificate   q = floor((n+c)/2)+1 signatures on one S
  8. Release       members of S send b_i, and e_ij for j outside S
  9. Recover       t_h helpers replace a member that fell silent after 7
 10. Open          sum of y_i minus what was released = sum of v_i, exactly

Guarantees, with at most c colluding hospitals:
  * one sum per header is opened: two quorums share an honest signer (6.1)
  * it covers at least s_min - c >= 2 honest inputs; each alone looks uniform
  * b_i and e_ij of one node never both leave: S decides which, and S is certified
  * a different header, roster or model at one node means different masks: no sum
  * keys of past rounds are gone from disk; recorded traffic needs ML-KEM *and* X25519 broken
Not promised: progress against a coordinator that refuses service; what a sum itself
reveals (that is differential privacy's part); anything against more than c colluders.

Who learns what. Coordinator: the sum, who took part, sizes and times. Node: the next
model and S. Helper: t_h - 1 shares mean nothing; it returns shares for certified S only.

Every module is sans-io: no sockets, clocks, files or logs, and randomness is an
argument (`common.entropy`), except that ML-KEM encapsulation draws inside OpenSSL.
"""
