package scheduler

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Verdict is a filter's answer about one host: [Pass], or a rejection made by [Reject] or [RejectNumbers]. The zero
// Verdict is Pass.
type Verdict struct {
	format string // the reason: the first %d stands for a, each later %d for b, %% for %; empty if the host passes
	a, b   int64
}

// Pass is the Verdict on a host that the filter accepts.
var Pass Verdict

// Reject returns the Verdict that rejects a host for a reason, such as "trait HW_CPU_X86_AVX2 is missing". With args, the
// reason is formatted as by fmt.Sprintf. Without args, and without a % in the reason, Reject allocates no memory.
func Reject(reason string, args ...any) Verdict {
	if len(args) > 0 {
		reason = fmt.Sprintf(reason, args...)
	}
	if strings.Contains(reason, "%") {
		reason = strings.ReplaceAll(reason, "%", "%%")
	}
	return Verdict{format: cmp.Or(reason, "no reason given")}
}

// RejectNumbers works like [Reject], for a reason with two numbers. The first %d of format stands for a, the second for b, as
// in "needs %d MiB, %d MiB free"; %% stands for %. RejectNumbers allocates no memory, because the text is made only when it
// is read.
func RejectNumbers[N ~int | ~int32 | ~int64](format string, a, b N) Verdict {
	if format == "" {
		format = "%d, %d"
	}
	return Verdict{format, int64(a), int64(b)}
}

// reasonText returns the text of a reason.
func reasonText(format string, a, b int64) string {
	i := strings.IndexByte(format, '%')
	if i < 0 {
		return format
	}
	out := make([]byte, 0, len(format)+16)
	for ; i >= 0 && i+1 < len(format); i = strings.IndexByte(format, '%') {
		switch format[i+1] {
		case 'd':
			out = strconv.AppendInt(append(out, format[:i]...), a, 10)
			a = b
		case '%':
			out = append(out, format[:i+1]...)
		default:
			out = append(out, format[:i+2]...)
		}
		format = format[i+2:]
	}
	return string(append(out, format...))
}
