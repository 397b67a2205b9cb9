package api

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
)

// NameTemplate says how servers are named on their hosts. The zero value is [DefaultNameTemplate].
type NameTemplate struct{ text string }

// DefaultNameTemplate names servers by their IDs. Nova's default has a number that servers do not have here.
const DefaultNameTemplate = "instance-%(uuid)s"

// nameValues are the values of a server that a template may have, as in Nova.
var nameValues = map[string]func(*store.Server) string{
	"%(uuid)s":           func(s *store.Server) string { return s.ID },
	"%(hostname)s":       func(s *store.Server) string { return s.Hostname },
	"%(project_id)s":     func(s *store.Server) string { return s.ProjectID },
	"%(user_id)s":        func(s *store.Server) string { return s.UserID },
	"%(reservation_id)s": func(s *store.Server) string { return s.ReservationID },
	"%(launch_index)d":   func(s *store.Server) string { return strconv.Itoa(s.LaunchIndex) },
}

// nameValue matches a value in a template. nameText matches a name that hypervisors accept.
var (
	nameValue = regexp.MustCompile(`%(\([a-z_]*\))?[0-9.]*[a-zA-Z]?`)
	nameText  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// ParseNameTemplate reads a template. Errors: Invalid if two servers could have the same name, if servers do not have a value of the
// template, or if names would be too long or have characters that hypervisors refuse.
func ParseNameTemplate(text string) (NameTemplate, error) {
	for _, value := range nameValue.FindAllString(text, -1) {
		if nameValues[value] == nil {
			return NameTemplate{}, fault.New(fault.Invalid, "%q has %s, which servers do not have: use %%(uuid)s, and if needed %%(hostname)s, %%(project_id)s, %%(user_id)s, %%(reservation_id)s and %%(launch_index)d", text, value)
		}
	}
	switch {
	case !strings.Contains(text, "%(uuid)s"):
		return NameTemplate{}, fault.New(fault.Invalid, "%q lacks %%(uuid)s, so two servers could have the same name on a host", text)
	case len(nameValue.ReplaceAllStringFunc(text, func(value string) string { return strings.Repeat("x", shortestValue[value]) })) > maxInstanceName:
		return NameTemplate{}, fault.New(fault.Invalid, "%q makes names of more than %d bytes", text, maxInstanceName)
	case !nameText.MatchString(nameValue.ReplaceAllString(text, "x")):
		return NameTemplate{}, fault.New(fault.Invalid, "%q makes names that have other characters than letters, digits, dots, hyphens and underscores, or that begin with another one than a letter or digit", text)
	}
	return NameTemplate{text}, nil
}

// shortestValue has the lengths of values that always have the same length. The others may be short.
var shortestValue = map[string]int{"%(uuid)s": 36}

// maxInstanceName is the highest number of bytes of a name on a host.
const maxInstanceName = 255

// of returns the name of a server. If the name would be too long, or would have characters that hypervisors refuse, the name is the ID of the server.
func (t NameTemplate) of(s *store.Server) string {
	text := t.text
	if text == "" {
		text = DefaultNameTemplate
	}
	name := nameValue.ReplaceAllStringFunc(text, func(value string) string { return nameValues[value](s) })
	if len(name) > maxInstanceName || !nameText.MatchString(name) {
		return s.ID
	}
	return name
}
