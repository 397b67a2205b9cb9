package config

import (
	"maps"
	"slices"

	"github.com/armature-go/armature/internal/text"
)

// hintOption returns a clause for the error of an unknown option: the section that has an option of this
// name, or else the most similar name in the section.
func (l *loader) hintOption(section, key string) string {
	for _, other := range slices.Sorted(maps.Keys(l.options)) {
		if other != section && l.options[other][key] != nil {
			return "; it belongs to [" + other + "]"
		}
	}
	return text.Nearest(key, maps.Keys(l.options[section]))
}
