package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxLine is the length of a program's line of log beyond which it is cut, in
	// bytes.
	maxLine = 16 << 10
	// maxLines is how many lines a second of one program reach the log. What is
	// beyond is counted, not logged.
	maxLines = 1000
	// maxTail is how many of its last lines an error tells.
	maxTail = 5
)

// programLog turns what a program writes into records of a logger. It takes all
// that is written at once, so that a program never waits for its log.
type programLog struct {
	log *slog.Logger
	ctx context.Context //nolint:containedctx // nobody's: a line of log belongs to no call

	mu      sync.Mutex
	half    []byte // a line that has no end yet
	cut     bool   // of half, the end was dropped
	tail    []string
	panics  bool      // tail ends with what a Go program dies of
	second  time.Time // that lines counts
	lines   int
	dropped int
}

// Write takes a part of the program's output. It never fails.
func (l *programLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(b)
	for {
		i := bytes.IndexByte(b, '\n')
		part := b
		if i >= 0 {
			part = b[:i]
		}
		if room := maxLine - len(l.half); len(part) > room {
			part, l.cut = part[:room], true
		}
		l.half = append(l.half, part...)
		if i < 0 {
			return n, nil
		}
		b = b[i+1:]
		l.flush()
	}
}

// close logs a last line without an end, and what was dropped.
func (l *programLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	l.tellDropped()
}

// last returns the last lines, for an error's text.
func (l *programLog) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.tail, "; ")
}

func (l *programLog) flush() {
	line := string(bytes.TrimSpace(bytes.ToValidUTF8(l.half, []byte("\uFFFD"))))
	if l.cut {
		line += " (cut)"
	}
	l.half, l.cut = l.half[:0], false
	if line == "" {
		return
	}
	level, msg, attrs := parseLine(line)
	if !l.panics { // the stack says less
		if l.tail = append(l.tail, msg); len(l.tail) > maxTail {
			l.tail = slices.Delete(l.tail, 0, 1)
		}
		l.panics = strings.HasPrefix(msg, "panic: ") || strings.HasPrefix(msg, "fatal error: ")
	}
	if now := time.Now(); now.Sub(l.second) >= time.Second {
		l.tellDropped()
		l.second, l.lines = now, 0
	}
	if l.lines++; l.lines > maxLines {
		l.dropped++
		return
	}
	l.log.LogAttrs(l.ctx, level, msg, attrs...)
}

func (l *programLog) tellDropped() {
	if l.dropped > 0 {
		l.log.WarnContext(l.ctx, "the driver's program writes too much: lines were dropped", "dropped", l.dropped, "limit_per_second", maxLines)
	}
	l.dropped = 0
}

// parseLine reads a line of JSON as log/slog, HashiCorp's hclog and Python's
// loggers write it; every other line is its own message.
func parseLine(line string) (slog.Level, string, []slog.Attr) {
	var fields map[string]any
	if line[0] != '{' || json.Unmarshal([]byte(line), &fields) != nil {
		return plainLevel(line), line, nil
	}
	text := func(keys ...string) (found string) {
		for _, k := range keys {
			if s, ok := fields[k].(string); ok && found == "" {
				found = s
				delete(fields, k)
			}
		}
		return found
	}
	level, known := levels[strings.ToLower(text("level", "@level", "levelname"))]
	if !known {
		level = slog.LevelInfo
	}
	msg := text("msg", "@message", "message")
	if msg == "" {
		return level, line, nil
	}
	text("time", "@timestamp", "timestamp") // the record has one
	attrs := make([]slog.Attr, 0, len(fields))
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		v := fields[k]
		switch v.(type) {
		case map[string]any, []any:
			if raw, err := json.Marshal(v); err == nil {
				v = string(raw)
			}
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	return level, msg, attrs
}

var levels = map[string]slog.Level{
	"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "warning": slog.LevelWarn,
	"error": slog.LevelError, "critical": slog.LevelError, "fatal": slog.LevelError,
}

// plainLevel is Error for the beginning of what a program dies of.
func plainLevel(line string) slog.Level {
	for _, p := range []string{"panic: ", "fatal error: ", "Traceback "} {
		if strings.HasPrefix(line, p) {
			return slog.LevelError
		}
	}
	return slog.LevelInfo
}

// quote shows what a program wrote in an error's text, short and printable.
func quote(s string) string {
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return fmt.Sprintf("%q", s)
}
