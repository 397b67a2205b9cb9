package scheduler

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Verdict is a filter's answer about one host: [Pass], or that it is turned
// away, as made by [Reject] or [RejectNumbers]. The zero Verdict is Pass.
type Verdict struct {
	format string // of the reason: %d stands for a, then for b, and %% for %; empty: the host passes
	a, b   int64
}

// Pass is the Verdict that lets a host through.
var Pass Verdict

// Reject returns the Verdict that turns a host away, with the reason as by
// fmt.Sprintf: "trait HW_CPU_X86_AVX2 is missing". Without args it needs no
// memory.
func Reject(reason string, args ...any) Verdict {
	if len(args) > 0 {
		reason = fmt.Sprintf(reason, args...)
	}
	if strings.Contains(reason, "%") {
		reason = strings.ReplaceAll(reason, "%", "%%")
	}
	return Verdict{format: cmp.Or(reason, "no reason given")}
}

// RejectNumbers is Reject for a reason with two numbers: the first %d of format
// stands for a, the second for b, as in "needs %d MiB, %d MiB free". It needs no
// memory, and the text is made only if a decision names the host.
func RejectNumbers[N ~int | ~int32 | ~int64](format string, a, b N) Verdict {
	if format == "" {
		format = "%d, %d"
	}
	return Verdict{format, int64(a), int64(b)}
}

// phrase is a format, cut at what its %d stand for.
type phrase struct {
	format string
	parts  []string
	text   bool // whether it is no text as it is
}

// set makes f the format, and reports whether it is no text as it is.
func (p *phrase) set(f string) bool {
	if f == p.format { // most come many times in a row
		return p.text
	}
	p.format, p.parts, p.text = f, append(p.parts[:0], ""), strings.Contains(f, "%")
	for p.text {
		i := strings.IndexByte(f, '%')
		last := &p.parts[len(p.parts)-1]
		switch {
		case i < 0 || i+1 == len(f):
			*last += f
			return true
		case f[i+1] == 'd':
			*last += f[:i]
			p.parts = append(p.parts, "")
		case f[i+1] == '%':
			*last += f[:i+1]
		default:
			*last += f[:i+2]
		}
		f = f[i+2:]
	}
	return false
}

// append adds the text for v.
func (p *phrase) append(b []byte, v *Verdict) []byte {
	b = append(b, p.parts[0]...)
	n := v.a
	for _, part := range p.parts[1:] {
		b = append(strconv.AppendInt(b, n, 10), part...)
		n = v.b
	}
	return b
}
