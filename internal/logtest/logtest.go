// Package logtest counts log lines in tests.
package logtest

import (
	"context"
	"log/slog"
	"strings"
	"sync"
)

// Lines has the lines of a logger. It is safe for concurrent use.
type Lines struct {
	mu   sync.Mutex
	list []line
}

type line struct {
	level slog.Level
	text  string
}

// New returns a logger, for all levels, and the lines that it gets. Nothing is printed.
func New() (*slog.Logger, *Lines) {
	l := new(Lines)
	return slog.New(handler{l}), l
}

// Count returns how many lines of the level begin with the prefix. Count ignores the attributes of a line.
func (l *Lines) Count(level slog.Level, prefix string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, x := range l.list {
		if x.level == level && strings.HasPrefix(x.text, prefix) {
			n++
		}
	}
	return n
}

type handler struct{ lines *Lines }

func (h handler) Enabled(context.Context, slog.Level) bool { return true }
func (h handler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h handler) WithGroup(string) slog.Handler            { return h }

func (h handler) Handle(_ context.Context, r slog.Record) error {
	h.lines.mu.Lock()
	defer h.lines.mu.Unlock()
	h.lines.list = append(h.lines.list, line{r.Level, r.Message})
	return nil
}
