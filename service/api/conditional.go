package api

import (
	"net/http"
	"strings"

	"github.com/armature-go/armature/fault"
)

// Match says whether a change may be made to something whose entity tag is tag now, such
// as `"7"`: a request with If-Match is only for one of the tags that it names, one with
// If-None-Match: * only for something that is not there, which has the tag "". The error
// is a 412, or nil. RFC 9110, section 13.
func Match(r *http.Request, tag string) error {
	if want := r.Header.Values("If-Match"); len(want) > 0 && !listed(want, tag, true) {
		return WithStatus(http.StatusPreconditionFailed, fault.New(fault.Precondition, "It was changed meanwhile: its entity tag is %s.", tagName(tag)))
	}
	if none := r.Header.Values("If-None-Match"); len(none) > 0 && listed(none, tag, false) {
		return WithStatus(http.StatusPreconditionFailed, fault.New(fault.Precondition, "It is there already: its entity tag is %s.", tagName(tag)))
	}
	return nil
}

func tagName(tag string) string {
	if tag == "" {
		return "none, as there is no such thing"
	}
	return tag
}

// listed reports whether a list of entity tags names one. Weak ones are never the same
// in a strong comparison.
func listed(lines []string, tag string, strong bool) bool {
	if tag == "" {
		return false
	}
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			switch item = strings.TrimSpace(item); {
			case item == "*":
				return true
			case strong && (strings.HasPrefix(item, "W/") || strings.HasPrefix(tag, "W/")):
			case strings.TrimPrefix(item, "W/") == strings.TrimPrefix(tag, "W/"):
				return true
			}
		}
	}
	return false
}

// unchanged reports whether the client has what a reply with an ETag would send.
func unchanged(r *http.Request, reply http.Header, status int) bool {
	none := r.Header.Values("If-None-Match")
	if len(none) == 0 || status != http.StatusOK || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	return listed(none, reply.Get("Etag"), false)
}
