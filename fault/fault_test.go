package fault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/armature-go/armature/fault"
)

var errNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "no room on host")

func TestCodeOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want fault.Code
	}{
		{"plain", io.EOF, fault.Internal},
		{"new", fault.New(fault.NotFound, "x"), fault.NotFound},
		{"wrapped", fmt.Errorf("a: %w", fault.New(fault.Denied, "x")), fault.Denied},
		{"outermost wins", fault.New(fault.Unknown, "a: %w", errNoRoom), fault.Unknown},
		{"code itself", fmt.Errorf("a: %w", fault.Conflict), fault.Conflict},
		{"deadline", fmt.Errorf("a: %w", context.DeadlineExceeded), fault.Timeout},
		{"canceled", context.Canceled, fault.Canceled},
		{"joined", errors.Join(io.EOF, errNoRoom), fault.Exhausted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := fault.CodeOf(tt.err); got != tt.want {
				t.Errorf("CodeOf(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

// TestAcrossTheWire sends errors through JSON, as every transport does.
func TestAcrossTheWire(t *testing.T) {
	t.Parallel()
	err := fault.New(fault.Precondition, "host %s: %w", "n1", fmt.Errorf("claim: %w", errNoRoom))
	if !errors.Is(err, errNoRoom) || !errors.Is(err, fault.Precondition) {
		t.Fatalf("%#v does not match its own code and what it wraps", err)
	}
	if fault.IsRemote(err) {
		t.Error("a local error is remote")
	}
	got := send(t, err)
	if want := "host n1: claim: no room on host"; got.Error() != want {
		t.Errorf("message %q, want %q", got.Error(), want)
	}
	for _, target := range []error{errNoRoom, fault.Precondition} {
		if !errors.Is(got, target) {
			t.Errorf("errors.Is(remote, %v) = false", target)
		}
	}
	if errors.Is(got, fault.NotFound) || errors.Is(got, fault.Sentinel(fault.Exhausted, "Other", "")) {
		t.Error("it matches what it is not")
	}
	if !fault.IsRemote(fmt.Errorf("call: %w", got)) {
		t.Error("IsRemote = false for an error that a peer sent")
	}
	if again := send(t, fmt.Errorf("relayed: %w", got)); !errors.Is(again, errNoRoom) {
		t.Error("the reason is lost by a relay")
	}
}

func send(t *testing.T, err error) error {
	t.Helper()
	raw, jerr := json.Marshal(fault.From(err))
	if jerr != nil {
		t.Fatal(jerr)
	}
	var e fault.Error
	if jerr := json.Unmarshal(raw, &e); jerr != nil {
		t.Fatal(jerr)
	}
	return fault.Remote(e)
}

func TestFrom(t *testing.T) {
	t.Parallel()
	inner := &fault.Error{Code: fault.Invalid, Reason: "BadField", Msg: "bad", Meta: map[string]string{"field": "name"}}
	tests := []struct {
		name string
		err  error
		want *fault.Error
	}{
		{"nil", nil, nil},
		{"plain", io.EOF, &fault.Error{Code: fault.Internal, Msg: "EOF"}},
		{"details", fmt.Errorf("create: %w", inner), &fault.Error{
			Code: fault.Invalid, Reason: "BadField", Msg: "create: bad", Meta: map[string]string{"field": "name"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, fault.From(tt.err), cmpopts.IgnoreUnexported(fault.Error{})); diff != "" {
				t.Errorf("From (-want +got):\n%s", diff)
			}
		})
	}
}

// TestCodeFromNewerPeer: a code this version does not know must not break it.
func TestCodeFromNewerPeer(t *testing.T) {
	t.Parallel()
	var e fault.Error
	if err := json.Unmarshal([]byte(`{"code":"Quantum","msg":"m"}`), &e); err != nil || e.Code != fault.Internal {
		t.Errorf("code %v, error %v; want Internal, nil", e.Code, err)
	}
}

func Example() {
	claim := func() error { return fmt.Errorf("claim on n1: %w", errNoRoom) }
	err := claim()
	fmt.Println(err)
	fmt.Println(errors.Is(err, errNoRoom), errors.Is(err, fault.Exhausted), fault.CodeOf(err))
	// Output:
	// claim on n1: no room on host
	// true true Exhausted
}
