// Package computepb is the generated code of compute.proto, the contract of a
// compute driver. compute.proto documents it; package compute has the same contract
// as a Go interface.
package computepb
