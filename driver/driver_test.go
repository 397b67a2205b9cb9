package driver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
)

const snapshot driver.Capability = "snapshot"

// volumeDriver is a component's own kind of driver.
type volumeDriver interface {
	driver.Driver
	Size() int
}

type fakeDriver struct{ GiB int }

func (f *fakeDriver) Info(context.Context) (driver.Info, error) {
	return driver.Info{Name: "fake", Version: "1.0", Capabilities: []driver.Capability{snapshot}}, nil
}
func (f *fakeDriver) Close() error { return nil }
func (f *fakeDriver) Size() int    { return f.GiB }

func openFake(_ context.Context, cfg json.RawMessage) (volumeDriver, error) {
	f := &fakeDriver{GiB: 1}
	if cfg == nil {
		return f, nil
	}
	if err := json.Unmarshal(cfg, f); err != nil {
		return nil, fault.New(fault.Invalid, "option GiB: %w", err)
	}
	return f, nil
}

func TestOpen(t *testing.T) {
	t.Parallel()
	var r driver.Registry[volumeDriver]
	r.Add("fake", openFake)
	for cfg, want := range map[string]int{"": 1, `{"GiB": 7}`: 7} {
		var raw json.RawMessage
		if cfg != "" {
			raw = json.RawMessage(cfg)
		}
		d, err := r.Open(t.Context(), "fake", raw)
		if err != nil {
			t.Fatal(err)
		}
		if d.Size() != want {
			t.Errorf("options %q: size %d, want %d", cfg, d.Size(), want)
		}
	}
}

func TestOpenFails(t *testing.T) {
	t.Parallel()
	var none, r driver.Registry[volumeDriver]
	r.Add("fake", openFake)
	r.Add("acme", openFake)
	tests := []struct {
		name   string
		r      *driver.Registry[volumeDriver]
		driver string
		cfg    string
		want   error
		text   string
	}{
		{"unknown", &r, "akme", "", fault.NotFound, `driver "akme" does not exist; built in: acme, fake`},
		{"empty registry", &none, "", "", fault.NotFound, `driver "" does not exist; built in: none`},
		{
			"bad option", &r, "fake", `{"GiB":"x"}`, fault.Invalid,
			"open driver fake: option GiB: json: cannot unmarshal string into Go struct field fakeDriver.GiB of type int",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d, err := tt.r.Open(t.Context(), tt.driver, json.RawMessage(tt.cfg))
			if d != nil || !errors.Is(err, tt.want) || err.Error() != tt.text {
				t.Errorf("Open = %v, %v; want %s", d, err, tt.text)
			}
		})
	}
}

// TestOpenPassesContext: the driver's open function gets the deadline of the caller.
func TestOpenPassesContext(t *testing.T) {
	t.Parallel()
	var r driver.Registry[volumeDriver]
	r.Add("slow", func(ctx context.Context, _ json.RawMessage) (volumeDriver, error) {
		<-ctx.Done()
		return &fakeDriver{}, ctx.Err() // Open returns no driver with an error
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := r.Open(ctx, "slow", nil); d != nil || fault.CodeOf(err) != fault.Canceled {
		t.Errorf("Open = %v, %v; want nil, Canceled", d, err)
	}
}

func TestAddPanics(t *testing.T) {
	t.Parallel()
	var r driver.Registry[volumeDriver]
	r.Add("fake", openFake)
	for name, f := range map[string]func(){
		"no name": func() { r.Add("", openFake) },
		"nil":     func() { r.Add("x", nil) },
		"twice":   func() { r.Add("fake", openFake) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
	if got := r.Names(); !slices.Equal(got, []string{"fake"}) {
		t.Errorf("Names = %v after refused additions", got)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	var r driver.Registry[volumeDriver]
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprintf("d%d", i)
			r.Add(name, openFake)
			if _, err := r.Open(t.Context(), name, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(r.Names()); n != 8 {
		t.Errorf("%d names, want 8", n)
	}
}

func Example() {
	var drivers driver.Registry[volumeDriver]
	drivers.Add("fake", openFake)

	d, err := drivers.Open(context.Background(), "fake", json.RawMessage(`{"GiB": 20}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	info, err := d.Info(context.Background())
	fmt.Println(info.Name, d.Size(), info.Has(snapshot), info.Has("replicate"), err)

	_, err = drivers.Open(context.Background(), "acme", nil)
	fmt.Println(err)
	// Output:
	// fake 20 true false <nil>
	// driver "acme" does not exist; built in: fake
}
