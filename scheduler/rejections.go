package scheduler

import "slices"

// rejections are the rejected hosts of a decision, each with its reason. A reason is a format and two numbers; its text
// is made only when it is read. A decision about 100,000 hosts rejects most of them, and most of these texts are never
// read. Formats are interned: hosts that a filter rejects one after the other mostly have the same format, so a new format
// is only compared with the filter's last one.
type rejections[H Host] struct {
	hosts   []H
	reasons []reason // the reasons of the hosts
	formats []reasonFormat
}

// reason says why a host was rejected. It has no pointer, so the garbage collector need not follow it.
type reason struct {
	a, b   int64
	format int32 // an index of formats
}

// reasonFormat is the filter or weigher and the format of a reason, which many hosts may share.
type reasonFormat struct{ rejectedBy, format string }

// rejecter is a filter or a weigher, with 1 + the index of its latest format in formats; 0: none.
type rejecter struct {
	name   string
	latest int32
}

// add adds a host that by rejects.
func (r *rejections[H]) add(h H, by *rejecter, v *Verdict) {
	format := by.latest - 1
	if format < 0 || r.formats[format].format != v.format {
		format = int32(len(r.formats))
		r.formats = append(r.formats, reasonFormat{by.name, v.format})
		by.latest = format + 1
	}
	r.hosts = append(r.hosts, h)
	r.reasons = append(r.reasons, reason{v.a, v.b, format})
}

// at returns the filter and the text of the reason for the i-th host.
func (r *rejections[H]) at(i int) (rejectedBy, text string) {
	x := &r.reasons[i]
	f := &r.formats[x.format]
	return f.rejectedBy, reasonText(f.format, x.a, x.b)
}

// clone returns a copy that shares no memory.
func (r *rejections[H]) clone() rejections[H] {
	return rejections[H]{slices.Clone(r.hosts), slices.Clone(r.reasons), slices.Clone(r.formats)}
}

// reset removes all hosts and keeps the memory.
func (r *rejections[H]) reset() {
	clear(r.hosts)
	clear(r.formats)
	r.hosts, r.reasons, r.formats = r.hosts[:0], r.reasons[:0], r.formats[:0]
}
