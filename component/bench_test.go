package component_test

import (
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/internal/compare"
)

// BenchmarkStart measures the start and the stop of a process with all services. The process uses the bus in memory and an SQLite file
// that already has the tables. The benchmark ignores -benchtime. Set the duration with -args -rounds and -slice.
func BenchmarkStart(b *testing.B) {
	c := newWorld().component()
	env := []string{"OS_DATABASE__CONNECTION=sqlite://" + filepath.Join(b.TempDir(), "notes.db"), "OS_DEFAULT__LISTEN=127.0.0.1:0"}
	run := func() {
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		c.Started = func(*component.Process[options]) error { cancel(); return nil }
		if code := component.Run(ctx, c, nil, env, io.Discard, io.Discard); code != 0 {
			b.Errorf("exit code %d", code)
		}
	}
	run() // makes the tables
	compare.New().Row("start and stop, bus in memory and SQLite", 1, compare.Contender{Name: "component", Op: run})
}
