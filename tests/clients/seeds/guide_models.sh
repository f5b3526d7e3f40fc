curl $BASE/models \
  -H "Authorization: Bearer $MASTER_KEY"
