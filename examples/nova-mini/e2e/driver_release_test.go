package e2e_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/driver/drivertest"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/compute/computetest"
	"github.com/armature-go/armature/internal/releasetest"
)

// TestPreviousDriver: a driver program of the previous release keeps the driver rules with a compute service of this release, even if this
// release has a later protocol. The program of this release can replace the old program without a restart of the compute service. The
// replacement of the new program by the old one is refused, because the old program does not have the capability guest-data.
func TestPreviousDriver(t *testing.T) {
	t.Parallel()
	program := releasetest.Last(t, "./examples/drivers/fake/armature-compute-fake")
	options := func(t *testing.T) json.RawMessage {
		t.Helper()
		raw, err := json.Marshal(map[string]string{"host": "h1", "dir": t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	t.Run("rules", func(t *testing.T) {
		t.Parallel()
		computetest.RunProgram(t, computetest.Config{Config: drivertest.Config{Options: options(t), Plugin: driver.PluginConfig{Program: program}}})
	})
	t.Run("replace", func(t *testing.T) {
		t.Parallel()
		this := filepath.Join(t.TempDir(), "armature-compute-fake")
		if err := compile(this, "../../drivers/fake/armature-compute-fake"); err != nil {
			t.Fatal(err)
		}
		later := compute.Kind
		later.Protocol++ // so that the program has the previous protocol
		cfg := driver.PluginConfig{Program: program, Options: options(t), Logger: slog.New(slog.DiscardHandler)}
		p, err := driver.Launch(t.Context(), later, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		var want []string
		for i, next := range []string{this, program, this} {
			id := fmt.Sprintf("00000000-0000-4000-8000-%012d", i)
			if err := p.Driver().Spawn(t.Context(), compute.Spec{ID: id, Name: "s", ImageRef: "cirros", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 64, DiskGiB: 1}}); err != nil {
				t.Fatal(err)
			}
			want = append(want, id)
			cfg.Program = next
			switch err := p.Replace(t.Context(), cfg, nil); {
			case next == program: // refused: a capability of the running program is missing
				if err == nil || !strings.Contains(err.Error(), "it does not have the capability guest-data, which the running program has") {
					t.Errorf("back to the last release: %v", err)
				}
			case err != nil:
				t.Fatal(err)
			}
			for _, id := range want {
				if got, err := p.Driver().Get(t.Context(), id); err != nil || got.Power != compute.Running {
					t.Errorf("after the change to %s, server %s is %v, %v", next, id, got.Power, err)
				}
			}
		}
		if st := p.Status(); st.Replacements != 1 || st.Restarts != 1 || st.Protocol != compute.Kind.Protocol {
			t.Errorf("%+v", st)
		}
	})
}
