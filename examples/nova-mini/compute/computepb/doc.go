// Package computepb is the generated code of compute.proto, the contract of a
// compute driver. The comments in compute.proto are the documentation of the contract.
// Package compute has the same contract as a Go interface.
package computepb
