package api

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/version"
)

// Version is a microversion, such as 2.53. The zero value means no version.
type Version struct{ Major, Minor int }

// ParseVersion parses a version such as "2.53". If s has another form, the error is Invalid, with OpenStack's text.
func ParseVersion(s string) (Version, error) {
	a, b, ok := version.Parse(s)
	if !ok || a == 0 || max(a, b) > math.MaxUint16 {
		return Version{}, fault.New(fault.Invalid, "API Version String %s is of invalid format. Must be of format MajorNum.MinorNum.", shortenText(s))
	}
	return Version{a, b}, nil
}

func (v Version) String() string { return strconv.Itoa(v.Major) + "." + strconv.Itoa(v.Minor) }

// AtLeast reports whether v is the version major.minor or a later version.
func (v Version) AtLeast(major, minor int) bool { return !v.before(Version{major, minor}) }

// before reports whether v is earlier than w.
func (v Version) before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// compareVersions orders versions: its result is negative, 0 or positive, as for cmp.Compare.
func compareVersions(a, b Version) int {
	return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
}

// Microversions is the range of versions of an API. Service, Min and Max are required. A client selects a version with the
// header OpenStack-API-Version: SERVICE X.Y, by the rules of the API-SIG. Without the header, or if the header names only
// other services, the version is Min; "latest" means Max. A malformed version is answered with 400. A version outside of the
// range is answered with 406, and the error has Min and Max. Every reply on a path under Prefix has the version in this
// header, and the header Vary.
type Microversions struct {
	// Service is the type of the service, such as "volume".
	Service string
	// Min and Max are the first and the last version, such as "3.0" and "3.71".
	Min, Max string
	// Prefix is the beginning of the paths that have versions, such as "/v3". Empty: all paths.
	Prefix string
	// Headers are older names of the header OpenStack-API-Version, such as X-OpenStack-Nova-API-Version. The value of a
	// header with such a name is the version without SERVICE. OpenStack-API-Version takes precedence.
	Headers []string
}

// versioned is Microversions with parsed versions.
type versioned struct {
	Microversions
	min, max Version
}

// newVersioned parses and checks m. It panics if m is wrong. It returns nil if m is nil.
func newVersioned(m *Microversions) *versioned {
	if m == nil {
		return nil
	}
	v := &versioned{Microversions: *m}
	v.min, v.max = mustVersion(m.Min), mustVersion(m.Max)
	if m.Service == "" || v.max.before(v.min) {
		panic(fmt.Sprintf("api: Microversions: Service is %q, Min %s, Max %s: Service must not be empty, and Max not before Min", m.Service, m.Min, m.Max))
	}
	return v
}

// mustVersion parses a version. It panics if s is malformed.
func mustVersion(s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		panic("api: " + err.Error())
	}
	return v
}

const versionHeader = "OpenStack-API-Version"

// coversPath reports whether requests with a path have versions.
func (v *versioned) coversPath(path string) bool {
	rest, ok := strings.CutPrefix(path, v.Prefix)
	return ok && (rest == "" || rest[0] == '/' || v.Prefix == "")
}

// negotiate returns the version that a request with the header h has selected, and adds the version to the header of the
// reply. The errors are those that [Microversions] describes.
func (v *versioned) negotiate(h, reply http.Header) (Version, error) {
	reply.Add("Vary", versionHeader)
	for _, name := range v.Headers {
		reply.Add("Vary", name)
	}
	want := v.requestedVersion(h)
	got, err := v.chooseVersion(want)
	shown := got.String()
	if err != nil {
		if _, perr := ParseVersion(want); perr != nil {
			shown = v.min.String()
		} else {
			shown = want // as in Nova, the error has the client's own text
		}
	}
	reply.Set(versionHeader, v.Service+" "+shown)
	for _, name := range v.Headers {
		reply.Set(name, shown)
	}
	return got, err
}

// requestedVersion returns the version that the client requests, or "". If a header has several versions of the service, the last one counts, as in OpenStack's
// microversion_parse.
func (v *versioned) requestedVersion(h http.Header) string {
	for _, item := range slices.Backward(itemsOf(h, versionHeader)) {
		fields := strings.Fields(item)
		if len(fields) > 0 && strings.EqualFold(fields[0], v.Service) {
			return strings.Join(fields[1:], " ")
		}
	}
	for _, name := range v.Headers {
		items := itemsOf(h, name)
		if want := strings.TrimSpace(items[len(items)-1]); want != "" {
			return want
		}
	}
	return ""
}

// itemsOf returns the items of a header, which are separated by commas. It returns at least one item, which may be empty.
func itemsOf(h http.Header, name string) []string {
	return strings.Split(strings.Join(h.Values(name), ","), ",")
}

// chooseVersion parses a requested version. It returns an error if the API does not have the version.
func (v *versioned) chooseVersion(want string) (Version, error) {
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

// span is a range of versions that includes both ends. A zero end means no limit.
type span struct{ min, max Version }

// newSpan returns a range. It panics if the range is malformed or empty.
func newSpan(low, high string) span {
	s, err := parseSpan(low, high)
	if err != nil {
		panic("api: " + err.Error())
	}
	return s
}

// parseSpan returns a range of versions. An empty text means no limit.
func parseSpan(low, high string) (s span, err error) {
	if low != "" {
		s.min, err = ParseVersion(low)
	}
	if high != "" && err == nil {
		s.max, err = ParseVersion(high)
	}
	if err == nil && s.max != (Version{}) && s.max.before(s.min) {
		err = errors.New("the first version " + low + " is after the last version " + high)
	}
	return s, err
}

// intersect returns the range of the versions that are in both ranges.
func (s span) intersect(t span) span {
	if s.min.before(t.min) {
		s.min = t.min
	}
	if s.max == (Version{}) || t.max != (Version{}) && t.max.before(s.max) {
		s.max = t.max
	}
	return s
}

// has reports whether v is in the range.
func (s span) has(v Version) bool {
	return !v.before(s.min) && (s.max == (Version{}) || !s.max.before(v))
}

// overlaps reports whether a version is in both ranges.
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
