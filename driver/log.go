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
	// maxLine is the maximum length of a log line of a program, in bytes. A longer line is
	// cut.
	maxLine = 16 << 10
	// maxLines is the maximum number of lines of one program that are logged in a second. More lines are
	// counted, and not logged.
	maxLines = 1000
	// maxTail is the number of last lines that an error has.
	maxTail = 5
)

// programLog turns the output of a program into log records. It always reads at once, so that
// a program never waits for its log.
type programLog struct {
	log *slog.Logger
	ctx context.Context //nolint:containedctx // without values: a log line of a program belongs to no call

	mu      sync.Mutex
	half    []byte    // the beginning of a line whose end is not written yet
	cut     bool      // the line was longer than maxLine
	tail    []string  // the last lines
	panics  bool      // tail ends with the message of a panic
	second  time.Time // when the second of lines began
	lines   int       // lines in this second
	dropped int       // lines that were not logged
}

// Write logs the lines of a part of the program's output. It never returns an error.
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

// close logs a last line without a line break, and the number of dropped lines.
func (l *programLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	l.logDropped()
}

// last returns the last lines, for the text of an error.
func (l *programLog) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.tail, "; ")
}

// flush logs the line in half, and clears half.
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
	if !l.panics { // the stack after a panic's message says less than the lines before it
		if l.tail = append(l.tail, msg); len(l.tail) > maxTail {
			l.tail = slices.Delete(l.tail, 0, 1)
		}
		l.panics = strings.HasPrefix(msg, "panic: ") || strings.HasPrefix(msg, "fatal error: ")
	}
	if now := time.Now(); now.Sub(l.second) >= time.Second {
		l.logDropped()
		l.second, l.lines = now, 0
	}
	if l.lines++; l.lines > maxLines {
		l.dropped++
		return
	}
	l.log.LogAttrs(l.ctx, level, msg, attrs...)
}

// logDropped logs the number of dropped lines, if there are any.
func (l *programLog) logDropped() {
	if l.dropped > 0 {
		l.log.WarnContext(l.ctx, "driver program logs too much, lines dropped", "dropped", l.dropped, "limit_per_second", maxLines)
	}
	l.dropped = 0
}

// parseLine parses a line of JSON in the form of log/slog, of HashiCorp's hclog, or of Python's
// loggers. Any other line is the message itself.
func parseLine(line string) (slog.Level, string, []slog.Attr) {
	var fields map[string]any
	if line[0] != '{' || json.Unmarshal([]byte(line), &fields) != nil {
		return plainLevel(line), line, nil
	}
	level, known := levels[strings.ToLower(removeText(fields, "level", "@level", "levelname"))]
	if !known {
		level = slog.LevelInfo
	}
	msg := removeText(fields, "msg", "@message", "message")
	if msg == "" {
		return level, line, nil
	}
	removeText(fields, "time", "@timestamp", "timestamp") // the record gets a time of its own
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

// removeText removes the keys that have a text, up to the first text that is not empty, and returns this text, or "".
func removeText(fields map[string]any, keys ...string) string {
	for _, k := range keys {
		s, ok := fields[k].(string)
		if ok {
			delete(fields, k)
		}
		if s != "" {
			return s
		}
	}
	return ""
}

// levels are the names of levels that programs use.
var levels = map[string]slog.Level{
	"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "warning": slog.LevelWarn,
	"error": slog.LevelError, "critical": slog.LevelError, "fatal": slog.LevelError,
}

// plainLevel returns the level of a line that is not JSON: ERROR for the message of a panic or of a Python exception, else
// INFO.
func plainLevel(line string) slog.Level {
	for _, p := range []string{"panic: ", "fatal error: ", "Traceback "} {
		if strings.HasPrefix(line, p) {
			return slog.LevelError
		}
	}
	return slog.LevelInfo
}

// quoteText returns a program's text for an error: printable, in quotes, and at most 200 bytes of it.
func quoteText(s string) string {
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return fmt.Sprintf("%q", s)
}
