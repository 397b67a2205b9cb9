package rpctest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/goldentest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// judge is a testing.TB that stores its failures as text.
type judge struct {
	testing.TB
	said string
}

func (j *judge) Helper()                   {}
func (j *judge) Errorf(f string, a ...any) { j.said += fmt.Sprintf(f, a...) }
func (j *judge) Fatalf(f string, a ...any) { j.Errorf(f, a...); panic(j) }

type ask struct {
	Name string `json:"name"`
	N    *int   `json:"n,omitempty"`
	Deep []struct {
		At   time.Time
		Self *ask
	}
	Any map[string]any
}

type askMore struct {
	Name string `json:"name"`
	N    *int   `json:"n,omitempty"`
	Deep []struct {
		At   time.Time
		Self *askMore
	}
	Any  map[string]any
	More bool `json:"more"`
}

type askDeep struct {
	Name string `json:"name"`
	N    *int   `json:"n,omitempty"`
	Deep []struct {
		At   time.Time
		Self *askDeep
		More bool
	}
	Any map[string]any
}

type askLess struct {
	Name string `json:"name"`
}

type askOther struct {
	ask
	Name int `json:"name"`
}

// add returns a function that adds a method to an interface.
func add[Req, Resp any](name string, since rpc.Version, d rpc.Delivery) func(*rpc.Interface) {
	return func(i *rpc.Interface) {
		rpc.Define(rpc.Method[Req, Resp]{Interface: i, Name: name, Since: since, Delivery: d})
	}
}

// check returns the failures of Contract for an interface with the given methods.
func check(t *testing.T, file string, v rpc.Version, methods ...func(*rpc.Interface)) string {
	t.Helper()
	j := &judge{TB: t}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(j) {
				panic(p)
			}
		}()
		i := &rpc.Interface{Name: "backup", Version: v}
		for _, m := range methods {
			m(i)
		}
		rpctest.Contract(j, file, i)
	}()
	return j.said
}

// TestContract: the failure names each broken rule. An addition needs a higher version and a new file.
func TestContract(t *testing.T) { // not parallel: the environment variable belongs to the process
	file := filepath.Join(t.TempDir(), "backup.json")
	v1, v11, v2 := rpc.Version{Major: 1}, rpc.Version{Major: 1, Minor: 1}, rpc.Version{Major: 2}
	start := add[ask, ask]("start", v1, rpc.AtMostOnce)
	if said := check(t, file, v1, start); !strings.Contains(said, "ARMATURE_UPDATE=1") {
		t.Errorf("no file: %q", said)
	}
	t.Setenv(goldentest.UpdateVar, "1")
	if said := check(t, file, v1, start); said != "" {
		t.Fatalf("the first time: %s", said)
	}
	frozen, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		version rpc.Version
		methods []func(*rpc.Interface)
		says    string // with ARMATURE_UPDATE=1
	}{
		{"the same", v1, []func(*rpc.Interface){start}, ""},
		{"a method removed", v11, nil, "start was removed: this needs a new major version"},
		{"newer since", v11, []func(*rpc.Interface){add[ask, ask]("start", v11, rpc.AtMostOnce)}, "start: Since was 1.0 and is now 1.1: this needs a new major version"},
		{"other delivery", v11, []func(*rpc.Interface){add[ask, ask]("start", v1, rpc.AtLeastOnce)}, "start: Delivery was at-most-once and is now at-least-once: this needs a new major version"},
		{"a field removed", v11, []func(*rpc.Interface){add[askLess, ask]("start", v1, rpc.AtMostOnce)}, "start's request: the field Any was removed: this needs a new major version"},
		{"another type", v11, []func(*rpc.Interface){add[ask, askOther]("start", v1, rpc.AtMostOnce)}, `start's response.name was "string" and is now "int": this needs a new major version`},
		{"a field, same version", v1, []func(*rpc.Interface){add[askMore, ask]("start", v1, rpc.AtMostOnce)}, "an addition needs a higher minor version"},
		{"a field, next minor", v11, []func(*rpc.Interface){add[askMore, ask]("start", v1, rpc.AtMostOnce)}, ""},
		{"a field in a list", v11, []func(*rpc.Interface){add[askDeep, ask]("start", v1, rpc.AtMostOnce)}, ""},
		{"a field in a list, same version", v1, []func(*rpc.Interface){add[askDeep, ask]("start", v1, rpc.AtMostOnce)}, "an addition needs a higher minor version"},
		{"the method of rpccaps", v11, []func(*rpc.Interface){start, add[ask, ask]("version_caps", v1, rpc.AtMostOnce)}, ""},
		{"the method of rpccaps in the same version", v1, []func(*rpc.Interface){start, add[ask, ask]("version_caps", v1, rpc.AtMostOnce)}, "an addition needs a higher minor version"},
		{"a method, backdated", v11, []func(*rpc.Interface){start, add[ask, ask]("stop", v1, rpc.AtMostOnce)}, "stop is new, but its Since is 1.0, and the published version is 1.0 already"},
		{"a method, next minor", v11, []func(*rpc.Interface){start, add[ask, ask]("stop", v11, rpc.AtMostOnce)}, ""},
		{"all new, next major", v2, []func(*rpc.Interface){add[askLess, askLess]("begin", v2, rpc.AtMostOnce)}, ""},
		{"backwards", rpc.Version{Major: 0, Minor: 9}, nil, "the version went back"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(file, frozen, 0o600); err != nil {
				t.Fatal(err)
			}
			said := check(t, file, tt.version, tt.methods...)
			if tt.says == "" && said != "" || !strings.Contains(said, tt.says) {
				t.Errorf("the failure is %q, want %q", said, tt.says)
			}
			if strings.Contains(said, "major") != strings.Contains(tt.says, "major") {
				t.Errorf("the failure is %q: it must name a new major version only if that is the remedy", said)
			}
			after, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if tt.says != "" && string(after) != string(frozen) {
				t.Error("a broken contract was written to the file")
			}
			t.Setenv(goldentest.UpdateVar, "")
			said = check(t, file, tt.version, tt.methods...)
			if (said == "") != (tt.says == "") {
				t.Errorf("without ARMATURE_UPDATE the failure is %q", said)
			}
		})
	}
}
