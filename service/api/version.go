package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
)

// Version is a microversion, such as 2.53. The zero value is none.
type Version struct{ Major, Minor int }

// ParseVersion reads "2.53". Invalid, in OpenStack's words: it has another form.
func ParseVersion(s string) (Version, error) {
	major, minor, ok := strings.Cut(s, ".")
	a, errA := number(major)
	b, errB := number(minor)
	if !ok || errA != nil || errB != nil || a == 0 {
		return Version{}, fault.New(fault.Invalid, "API Version String %s is of invalid format. Must be of format MajorNum.MinorNum.", shorten(s))
	}
	return Version{a, b}, nil
}

// number reads digits without a leading zero.
func number(s string) (int, error) {
	if s == "" || len(s) > 1 && s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err
}

func (v Version) String() string { return strconv.Itoa(v.Major) + "." + strconv.Itoa(v.Minor) }

// AtLeast reports whether v is major.minor or later.
func (v Version) AtLeast(major, minor int) bool { return !v.before(Version{major, minor}) }

func (v Version) before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// Microversions says which versions of the API there are. A client asks for one with
// the header OpenStack-API-Version: SERVICE X.Y, by the rules of the API-SIG: without it,
// or with that of other services only, it gets Min; "latest" is Max; a malformed one is
// 400, one that is not spoken 406 with both bounds. Every reply has the version, and a
// Vary for it.
type Microversions struct {
	// Service is the type of the service, such as "volume".
	Service string
	// Min and Max are the first and the last version, such as "3.0" and "3.71".
	Min, Max string
	// Prefix begins the paths that have versions, such as "/v3".
	Prefix string
	// Headers are older names of the header, whose value is the version alone, such as
	// X-OpenStack-Nova-API-Version.
	Headers []string
}

// versioned is Microversions as it is used.
type versioned struct {
	Microversions
	min, max Version
}

func newVersioned(m *Microversions) *versioned {
	if m == nil {
		return nil
	}
	v := &versioned{Microversions: *m}
	v.min, v.max = mustVersion(m.Min), mustVersion(m.Max)
	if m.Service == "" || v.max.before(v.min) {
		panic(fmt.Sprintf("api: Microversions of %q from %s to %s", m.Service, m.Min, m.Max))
	}
	return v
}

func mustVersion(s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		panic("api: " + err.Error())
	}
	return v
}

const versionHeader = "OpenStack-API-Version"

// under reports whether a path has versions.
func (v *versioned) under(path string) bool {
	rest, ok := strings.CutPrefix(path, v.Prefix)
	return ok && (rest == "" || rest[0] == '/' || v.Prefix == "")
}

// negotiate finds out which version is wanted, and says it in the reply's header. An
// error is as [Microversions] says.
func (v *versioned) negotiate(h, reply http.Header) (Version, error) {
	reply.Add("Vary", versionHeader)
	for _, name := range v.Headers {
		reply.Add("Vary", name)
	}
	want := v.asked(h)
	got, err := v.choose(want)
	shown := got.String()
	if err != nil {
		if _, perr := ParseVersion(want); perr != nil {
			shown = v.min.String()
		} else {
			shown = want // as Nova does: the client sees its own question
		}
	}
	reply.Set(versionHeader, v.Service+" "+shown)
	for _, name := range v.Headers {
		reply.Set(name, shown)
	}
	return got, err
}

// asked returns what the client asks for, or "".
func (v *versioned) asked(h http.Header) string {
	for _, line := range h.Values(versionHeader) {
		for item := range strings.SplitSeq(line, ",") {
			fields := strings.Fields(item)
			if len(fields) > 0 && strings.EqualFold(fields[0], v.Service) {
				return strings.Join(fields[1:], " ")
			}
		}
	}
	for _, name := range v.Headers {
		if want := strings.TrimSpace(h.Get(name)); want != "" {
			return want
		}
	}
	return ""
}

func (v *versioned) choose(want string) (Version, error) {
	switch {
	case want == "":
		return v.min, nil
	case strings.EqualFold(want, "latest"):
		return v.max, nil
	}
	got, err := ParseVersion(want)
	if err != nil {
		return v.min, err
	}
	if got.before(v.min) || v.max.before(got) {
		return v.min, WithStatus(http.StatusNotAcceptable, fault.WithReason(
			fault.New(fault.Invalid, "Version %s is not supported by the API. Minimum is %s and maximum is %s.", got, v.min, v.max),
			"VersionNotSupported", map[string]string{"min_version": v.Min, "max_version": v.Max}))
	}
	return got, nil
}

// span is a range of versions, both ends included. A zero end is open.
type span struct{ min, max Version }

func newSpan(low, high string) span {
	var s span
	if low != "" {
		s.min = mustVersion(low)
	}
	if high != "" {
		s.max = mustVersion(high)
	}
	if s.max != (Version{}) && s.max.before(s.min) {
		panic("api: a range of versions from " + low + " to " + high)
	}
	return s
}

func (s span) has(v Version) bool {
	return !v.before(s.min) && (s.max == (Version{}) || !s.max.before(v))
}

func (s span) overlaps(t span) bool {
	return (s.max == (Version{}) || !s.max.before(t.min)) && (t.max == (Version{}) || !t.max.before(s.min))
}

func (s span) String() string {
	low, high := "the first", "the last"
	if s.min != (Version{}) {
		low = s.min.String()
	}
	if s.max != (Version{}) {
		high = s.max.String()
	}
	return low + " to " + high
}
