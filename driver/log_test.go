package driver_test

import (
	"bytes"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/internal/waittest"
)

// TestLog: the log of a program is in the worker's log, and even a flood of lines does not block
// the worker or the program.
func TestLog(t *testing.T) {
	t.Parallel()
	var log logBuffer
	p := launchPlugin(t, driver.PluginConfig{Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	d := p.Driver()
	if _, err := d.Echo(t.Context(), "log"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"level":"WARN","msg":"the fan is slow","driver":"good","rpm":300`, `"level":"INFO","msg":"plain words"`, `"msg":"printed"`} {
		waittest.Until(t, want+" in the log", log.has(want))
	}
	for _, line := range []string{`{"@message": 5, "@level": 7}`, `{"@message":"x","@timestamp":true}`, "{", "\xff\xfe", strings.Repeat("long ", 100_000), `{"level":"FATAL","msg":"the end"}`} {
		if _, err := d.Echo(t.Context(), "write:"+strconv.Quote(line+"\n")); err != nil {
			t.Errorf("%.20s: %v", line, err)
		}
	}
	waittest.Until(t, "the last line", log.has(`"level":"ERROR","msg":"the end"`))
	if !log.has("long (cut)")() {
		t.Error("a long line was not cut")
	}
	if _, err := d.Echo(t.Context(), "flood:200000"); err != nil {
		t.Errorf("a flood: %v", err)
	}
	if _, err := d.Echo(t.Context(), "log"); err != nil {
		t.Error(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	waittest.Until(t, "the number of dropped lines", log.has("lines dropped"))
	if n := log.lines(); n > 50_000 {
		t.Errorf("%d lines of 200,000 are in the log", n)
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) has(s string) func() bool {
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return bytes.Contains(l.b.Bytes(), []byte(s))
	}
}

func (l *logBuffer) lines() int { return l.count("\n") }

func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(s))
}
